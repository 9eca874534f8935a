//! A server for faults that a real OAP can't be asked to make.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::super::config::{Address, Config};

/// What it does with a call.
#[derive(Clone, Debug)]
pub(in super::super) enum Does {
    /// Answers with no commands.
    Answer,
    /// Answers when [`Server::go_on`] is called.
    Wait,
    /// Begins an answer and ends it without a message or a status.
    HalfClose,
    /// A status, at once.
    Status(u8, &'static str),
    /// Answers with bytes that are no message.
    Garbage,
    /// Takes the call and hangs up.
    HangUp,
    /// Resets the stream.
    Reset(h2::Reason),
    /// An answer of a proxy.
    Http(u16),
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Came {
    pub(in super::super) path: String,
    pub(in super::super) token: Option<String>,
    pub(in super::super) authority: String,
    pub(in super::super) bytes: usize,
}

/// What it does, by path.
type Rule = Box<dyn Fn(&str) -> Does + Send>;

struct State {
    does: Mutex<Rule>,
    came: Mutex<Vec<Came>>,
    go_on: watch::Sender<bool>,
    hang_up: Notify,
    token: Mutex<Option<&'static str>>,
}

/// The server, on a port of its own; it is gone with the runtime.
#[derive(Clone)]
pub(in super::super) struct Server {
    pub(in super::super) address: Address,
    state: Arc<State>,
}

impl Server {
    /// One that does this with every call.
    pub(in super::super) async fn that(does: Does) -> Self {
        Self::with_tls(does, None).await
    }

    /// The same behind TLS.
    pub(in super::super) async fn with_tls(does: Does, tls: Option<ServerConfig>) -> Self {
        let (listener, address) = listen().await;
        let state = Arc::new(State {
            does: Mutex::new(Box::new(move |_: &str| does.clone())),
            came: Mutex::default(),
            go_on: watch::Sender::new(false),
            hang_up: Notify::new(),
            token: Mutex::default(),
        });
        let server = Self { address, state };
        let tls = tls.map(|mut tls| {
            if tls.alpn_protocols.is_empty() {
                tls.alpn_protocols = vec![b"h2".to_vec()];
            }
            TlsAcceptor::from(Arc::new(tls))
        });
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, tls) = (accepting.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                server.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// From now on it does that, by path.
    pub(in super::super) fn does(&self, does: impl Fn(&str) -> Does + Send + 'static) {
        *self.state.does.lock().unwrap() = Box::new(does);
    }

    /// From now on it wants a token.
    pub(in super::super) fn wants(&self, token: &'static str) {
        *self.state.token.lock().unwrap() = Some(token);
    }

    /// What waits is answered.
    pub(in super::super) fn go_on(&self) {
        self.state.go_on.send_replace(true);
    }

    /// Every connection is closed.
    pub(in super::super) fn hang_up(&self) {
        self.state.hang_up.notify_waiters();
    }

    /// What came so far.
    pub(in super::super) fn came(&self) -> Vec<Came> {
        self.state.came.lock().unwrap().clone()
    }

    /// A backend of it.
    pub(in super::super) fn config(&self) -> Config {
        Config::plain(self.address.clone())
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let hung_up = self.state.hang_up.notified();
        let serving = self.clone();
        let service = service_fn(move |request| serving.clone().answer(request));
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        tokio::pin!(hung_up, connection);
        std::future::poll_fn(|context| {
            use std::future::Future as _;
            if hung_up.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(());
            }
            connection.as_mut().poll(context).map(drop)
        })
        .await;
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, h2::Error> {
        let path = request.uri().path().to_owned();
        let header = |headers: &HeaderMap, name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let token = header(request.headers(), "authentication");
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let does = (self.state.does.lock().unwrap())(&path);
        let wanted = *self.state.token.lock().unwrap();
        let bytes = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        self.state.came.lock().unwrap().push(Came { path, token: token.clone(), authority, bytes });
        if wanted.is_some() && token.as_deref() != wanted {
            return Ok(status(7, ""));
        }
        match does {
            Does::Answer => Ok(message(b"")),
            Does::Wait => {
                let mut go_on = self.state.go_on.subscribe();
                let _on = go_on.wait_for(|on| *on).await;
                Ok(message(b""))
            }
            Does::HalfClose => Ok(grpc().body(Full::new(Bytes::new()).boxed()).unwrap()),
            Does::Status(code, text) => Ok(status(code, text)),
            Does::Garbage => Ok(message(&[0x0a, 0xff, 0xff, 0xff, 0xff])),
            Does::HangUp => {
                self.hang_up();
                pending().await
            }
            Does::Reset(reason) => Err(reason.into()),
            Does::Http(code) => {
                let body = Full::new(Bytes::from_static(b"<html>sorry</html>")).boxed();
                Ok(Response::builder().status(code).header("content-type", "text/html").body(body).unwrap())
            }
        }
    }
}

/// A port that answers every connection with these bytes and then hangs up.
pub(in super::super) async fn answering(bytes: &'static [u8]) -> Address {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream, bytes));
        }
    });
    address
}

async fn talk(mut stream: TcpStream, bytes: &'static [u8]) {
    let mut first = [0; 16];
    let _read = stream.read(&mut first).await;
    let _written = stream.write_all(bytes).await;
    let _closed = stream.shutdown().await;
    // What else comes is read, so that the end is not a reset.
    while stream.read(&mut first).await.is_ok_and(|count| count > 0) {}
}

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Address { host: "127.0.0.1".to_owned(), port })
}

/// A port that nobody listens on.
pub(in super::super) async fn closed() -> Address {
    listen().await.1
}

fn grpc() -> http::response::Builder {
    Response::builder().header("content-type", "application/grpc")
}

fn status(code: u8, text: &str) -> Response<BoxBody<Bytes, Infallible>> {
    let builder = grpc().header("grpc-status", code.to_string()).header("grpc-message", text);
    builder.body(Full::new(Bytes::new()).boxed()).unwrap()
}

/// A message and a good end.
fn message(bytes: &[u8]) -> Response<BoxBody<Bytes, Infallible>> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(bytes);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(framed)).with_trailers(async move { Some(Ok(trailers)) });
    grpc().body(body.boxed()).unwrap()
}
