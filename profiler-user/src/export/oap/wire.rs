//! One connection to a backend: made, watched for what is no gRPC, and called over.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http::{
    Request, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, HeaderName},
    uri::PathAndQuery,
};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{self, pki_types::ServerName},
};
use tonic::body::Body;

use super::{
    config::{Address, Config, ConfigError, Token},
    failure::{Failure, Fate, Found, Kind},
    tls,
};

/// What OAP compares with its own.
const AUTHENTICATION: HeaderName = HeaderName::from_static("authentication");

/// Marks a request of which nothing went out.
#[derive(Debug)]
pub(super) struct NotSent;

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was closed before")
    }
}

impl Error for NotSent {}

/// An answer that is of HTTP only: a proxy's.
#[derive(Debug)]
pub(super) struct OnlyHttp(pub(super) StatusCode);

impl fmt::Display for OnlyHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}", self.0)
    }
}

impl Error for OnlyHttp {}

/// What came over a connection so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    first: Mutex<First>,
    more: Notify,
}

/// Bytes that tell: a frame's length and type.
const KNOWN: usize = 4;

#[derive(Debug, Default)]
struct First {
    bytes: [u8; KNOWN],
    count: usize,
    ended: bool,
    alert: Option<String>,
}

impl Seen {
    fn first(&self) -> MutexGuard<'_, First> {
        self.0.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, new: &[u8]) {
        let mut first = self.first();
        if new.is_empty() {
            first.ended = true;
        }
        let count = first.count;
        let Some(free) = first.bytes.get_mut(count..).filter(|free| !free.is_empty() || new.is_empty())
        else {
            return;
        };
        let taken = free.len().min(new.len());
        for (to, from) in free.iter_mut().zip(new) {
            *to = *from;
        }
        first.count += taken;
        self.0.more.notify_one();
    }

    fn failed(&self, error: &io::Error) {
        let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let mut first = self.first();
        first.ended = true;
        if let Some(rustls::Error::AlertReceived(alert)) = alert {
            first.alert = Some(format!("{alert:?}"));
        }
        self.0.more.notify_one();
    }

    /// Waits until it is known what it is.
    async fn known(&self) {
        loop {
            let known = {
                let first = self.first();
                first.ended || first.count >= KNOWN
            };
            if known {
                return;
            }
            self.0.more.notified().await;
        }
    }

    /// What it is, if it is no gRPC: a server's first frame is SETTINGS
    /// (<https://www.rfc-editor.org/rfc/rfc9113#section-3.4>).
    pub(super) fn not_grpc(&self) -> Option<Found> {
        let first = self.first();
        if let Some(alert) = &first.alert {
            return Some(Found::Alert(alert.clone()));
        }
        match first.bytes.get(..first.count).unwrap_or_default() {
            [] => first.ended.then_some(Found::Nothing),
            [b'H', b'T', b'T', b'P', ..] => Some(Found::Http1),
            // A record of TLS: an alert or a handshake.
            [0x15 | 0x16, 3, ..] => Some(Found::Tls),
            // Length and type of a frame: settings, or the refusal of the connection.
            [_, _, _, 4 | 7, ..] => None,
            few if few.len() < KNOWN && !first.ended => None,
            _ => Some(Found::Garbage),
        }
    }
}

/// A stream whose first bytes are looked at.
struct Watched<S> {
    stream: S,
    seen: Seen,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        match &polled {
            Poll::Ready(Ok(())) => self.seen.read(buffer.filled().get(before..).unwrap_or_default()),
            Poll::Ready(Err(error)) => self.seen.failed(error),
            Poll::Pending => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Err(error)) = &polled {
            self.seen.failed(error);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A connection.
#[derive(Clone)]
pub(super) struct Link {
    sender: http2::SendRequest<Body>,
    origin: Uri,
    token: Option<Token>,
    /// Where to, as it was written.
    pub(super) address: String,
    /// What came over it.
    pub(super) seen: Seen,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects, in the time that there is.
    pub(super) async fn dial(config: &Config, address: &Address) -> Result<Self, Failure> {
        let whole = async {
            let stream = tcp(address, "gRPC port").await?;
            match &config.tls {
                None => Self::over(config, address, stream).await,
                Some(tls) => {
                    let client = tls::client(tls).map_err(|error| unusable(&error))?;
                    let stream = handshake(client, address, stream).await?;
                    Self::over(config, address, stream).await
                }
            }
        };
        timeout(config.deadlines.connect, whole).await.unwrap_or_else(|_| Err(silent(address, config)))
    }

    async fn over<S>(config: &Config, address: &Address, stream: S) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let seen = Seen::default();
        let watched = Watched { stream, seen: seen.clone() };
        let address = address.to_string();
        let failed = |error: &dyn fmt::Display| {
            Failure::new(Fate::Retry, Kind::Broken, format!("{address}: no HTTP/2 connection ({error})"))
        };
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(watched))
            .await
            .map_err(|error| failed(&error))?;
        // What ends it is told to every call that is under way.
        let _detached = tokio::spawn(async move {
            let _told = connection.await;
        });
        // Nothing is sent before the other side has said that it speaks HTTP/2: what goes wrong
        // until here is sure to have taken nothing with it.
        seen.known().await;
        if let Some(found) = seen.not_grpc() {
            return Err(found.failure(&address));
        }
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let origin = Uri::builder()
            .scheme(scheme)
            .authority(address.as_str())
            .path_and_query("/")
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self { sender, origin, token: config.token.clone(), address, seen })
    }

    /// Whether calls can be made over it.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// A connection without anything over it yet, to a port that is called so.
pub(super) async fn tcp(address: &Address, port: &str) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|error| {
        let text = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                format!("nobody listens there: is OAP up, and this its {port}?")
            }
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                "no route there: look at the network".to_owned()
            }
            io::ErrorKind::TimedOut => "no answer: does a firewall drop it?".to_owned(),
            // The resolver's errors have no kind.
            _ if error.raw_os_error().is_none() => format!("the name is not known ({error})"),
            _ => error.to_string(),
        };
        Failure::new(Fate::Retry, Kind::Unreachable, format!("{address}: {text}"))
    })?;
    // Small requests wait for nobody. Not being able to say so costs time only.
    let _said = stream.set_nodelay(true);
    Ok(stream)
}

/// Agrees on TLS.
pub(super) async fn handshake(
    client: rustls::ClientConfig,
    address: &Address,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Failure> {
    let failed = |text: String| Failure::new(Fate::Retry, Kind::Tls, format!("{address} {text}"));
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| failed("is no name that a certificate can have: connect by another".to_owned()))?;
    let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        failed(match inner {
            Some(inner) => tls::meaning(inner, &address.host),
            None => format!("hangs up during TLS ({error}): is it a TLS port?"),
        })
    })?;
    match stream.get_ref().1.alpn_protocol() {
        None | Some(b"h2") => Ok(stream),
        Some(_) => Err(failed("speaks TLS, but not HTTP/2 in it: name OAP's gRPC port".to_owned())),
    }
}

fn silent(address: &Address, config: &Config) -> Failure {
    let what = if config.tls.is_some() { "no TLS connection" } else { "no connection" };
    let seconds = config.deadlines.connect.as_secs_f64();
    Failure::new(
        Fate::Retry,
        Kind::Unreachable,
        format!("{address}: {what} in {seconds} s: does a firewall drop it, or does OAP hang?"),
    )
}

fn unusable(error: &ConfigError) -> Failure {
    Failure::new(Fate::Retry, Kind::Tls, error.to_string())
}

type Broken = Box<dyn Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Broken>> + Send>>;

impl tower_service::Service<Request<Body>> for Link {
    type Response = Response<Incoming>;
    type Error = Broken;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // What is closed is told by the call, which knows that nothing went out.
        let _ready = self.sender.poll_ready(context);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        let mut parts = self.origin.clone().into_parts();
        parts.path_and_query =
            request.uri().path_and_query().cloned().or_else(|| Some(PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        if let Some(Token(token)) = &self.token {
            let _none = request.headers_mut().insert(AUTHENTICATION, token.clone());
        }
        let answer = self.sender.try_send_request(request);
        Box::pin(async move {
            let answer: Result<_, Broken> = answer.await.map_err(|mut failed| match failed.take_message() {
                Some(_) => NotSent.into(),
                None => failed.into_error().into(),
            });
            let answer = answer?;
            let kind = answer.headers().get(CONTENT_TYPE);
            if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                Ok(answer)
            } else {
                Err(OnlyHttp(answer.status()).into())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(bytes: &[&[u8]], ends: bool) -> Option<Found> {
        let seen = Seen::default();
        for bytes in bytes {
            seen.read(bytes);
        }
        if ends {
            seen.read(&[]);
        }
        seen.not_grpc()
    }

    #[test]
    fn the_first_bytes_tell_what_it_is() {
        assert_eq!(seen(&[], false), None);
        assert_eq!(seen(&[], true), Some(Found::Nothing));
        assert_eq!(seen(&[b"HT", b"TP/1.1 400"], true), Some(Found::Http1));
        assert_eq!(seen(&[&[0x15, 3, 3, 0, 2, 2, 70]], true), Some(Found::Tls));
        assert_eq!(seen(&[&[0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 3]], true), None);
        assert_eq!(seen(&[&[0, 0]], false), None);
        assert_eq!(seen(&[&[0, 0]], true), Some(Found::Garbage));
        assert_eq!(seen(&[b"220 smtp ready"], false), Some(Found::Garbage));
    }
}
