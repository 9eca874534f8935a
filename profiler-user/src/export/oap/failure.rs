//! What went wrong with a call, and whether what it carried may have arrived.

use std::error::Error;

use h2::Reason;
use http::StatusCode;
use tonic::{Code, Status};

use super::wire::{NotSent, OnlyHttp, Seen};

/// nginx's, when we hung up: <https://nginx.org/en/docs/dev/development_guide.html#http_request_finalization>
const CLIENT_CLOSED: u16 = 499;

/// Where what was sent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Surely not arrived: it can be sent again.
    Retry,
    /// Perhaps arrived, wholly or in part: what would count twice must not be sent again.
    Unknown,
    /// It will be refused each time.
    Permanent,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The pause after an earlier failure is not over: nothing was tried.
    Paused,
    /// Nobody there: no name, no route, a closed port.
    Unreachable,
    /// TLS was not agreed on, or one's certificate not believed.
    Tls,
    /// What answers is no gRPC.
    NotGrpc,
    /// OAP has too much to do.
    Busy,
    /// Not now, says the other side.
    Unavailable,
    /// No answer in time.
    Deadline,
    /// The connection or the stream broke.
    Broken,
    /// The token is wrong.
    Token,
    /// There is no such service.
    Unimplemented,
    /// OAP can't take what was sent.
    Refused,
}

/// Why a call did not work: one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Where what was sent is.
    pub fate: Fate,
    /// What went wrong.
    pub kind: Kind,
    /// What, why, what to do.
    pub text: String,
}

impl Failure {
    /// One of these.
    #[must_use]
    pub fn new(fate: Fate, kind: Kind, text: impl Into<String>) -> Self {
        let text = line(&text.into());
        Self { fate, kind, text }
    }

    /// Whether the other calls will fail as well: the backend is to be left alone for a while.
    #[must_use]
    pub const fn is_the_backends(&self) -> bool {
        !matches!(self.kind, Kind::Paused | Kind::Refused | Kind::Unimplemented)
    }

    /// Of a call to `address` that ended with `status`.
    pub(super) fn of(call: &str, address: &str, status: &Status, seen: &Seen) -> Self {
        let at = format!("{call} at {address}");
        match cause(status) {
            // Nothing of it came to the other side's ears.
            Some(Cause::NotSent) => match seen.not_grpc() {
                Some(found) => found.failure(address),
                None => Self::new(
                    Fate::Retry,
                    Kind::Broken,
                    format!("{at}: the connection was closed before; it is made anew"),
                ),
            },
            Some(Cause::Broken(reason, text)) => match seen.not_grpc() {
                Some(found) => found.failure(address),
                None => broken(&at, reason, &text),
            },
            Some(Cause::Http(code)) => {
                // What a proxy refuses does not reach OAP; what it gave up waiting for may have, and so
                // may the begin of what is too large for it.
                let fate = match code {
                    StatusCode::PAYLOAD_TOO_LARGE => Fate::Permanent,
                    StatusCode::REQUEST_TIMEOUT => Fate::Unknown,
                    code if code.is_client_error() && code.as_u16() != CLIENT_CLOSED => Fate::Retry,
                    _ => Fate::Unknown,
                };
                let text = format!(
                    "{at}: something that is no gRPC answers ({code}): is there a proxy before OAP that \
                     passes no gRPC, or can't reach it?"
                );
                Self::new(fate, Kind::NotGrpc, text)
            }
            None => told(call, address, status),
        }
    }

    /// Of a call that was not answered in time.
    pub(super) fn late(call: &str, address: &str, seconds: f64, seen: &Seen) -> Self {
        if let Some(found) = seen.not_grpc() {
            return found.failure(address);
        }
        Self::new(
            Fate::Unknown,
            Kind::Deadline,
            format!(
                "{call} at {address}: no answer in {seconds} s; whether it arrived is unknown; look \
                 whether OAP hangs or the network drops packets"
            ),
        )
    }
}

/// What came over a connection that is no gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// HTTP/1.
    Http1,
    /// TLS, where none was spoken.
    Tls,
    /// It hung up before a word.
    Nothing,
    /// Our certificate was refused (or there is none).
    Alert(String),
    /// Something else.
    Garbage,
}

impl Found {
    /// It took nothing.
    pub(super) fn failure(&self, address: &str) -> Failure {
        let (kind, text) = match self {
            Self::Http1 => (
                Kind::NotGrpc,
                "answers with HTTP/1, not with gRPC: is it a proxy, or OAP's REST port (12800)? Name its \
                 gRPC port (11800)"
                    .to_owned(),
            ),
            Self::Tls => {
                (Kind::Tls, "speaks TLS, and we were told not to: add --oap-tls (and --oap-ca)".to_owned())
            }
            Self::Nothing => (
                Kind::NotGrpc,
                "hangs up without a word: does it want TLS (--oap-tls), or is it no gRPC port?".to_owned(),
            ),
            Self::Alert(alert) => (
                Kind::Tls,
                format!(
                    "refuses our side of TLS ({alert}): give a certificate that its CA signed, \
                     --oap-cert and --oap-key"
                ),
            ),
            Self::Garbage => {
                (Kind::NotGrpc, "answers with something that is no gRPC: name OAP's gRPC port".to_owned())
            }
        };
        Failure::new(Fate::Retry, kind, format!("{address} {text}"))
    }
}

/// What in the transport made a status.
enum Cause {
    NotSent,
    Broken(Option<Reason>, String),
    Http(StatusCode),
}

/// None: the other side said it itself.
fn cause(status: &Status) -> Option<Cause> {
    let mut source = status.source();
    let mut broken = None;
    while let Some(error) = source {
        if error.is::<NotSent>() {
            return Some(Cause::NotSent);
        }
        if let Some(OnlyHttp(code)) = error.downcast_ref() {
            return Some(Cause::Http(*code));
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return Some(Cause::Broken(error.reason(), error.to_string()));
        }
        if error.is::<hyper::Error>() {
            broken = Some(Cause::Broken(None, error.to_string()));
        }
        source = error.source();
    }
    broken
}

fn broken(at: &str, reason: Option<Reason>, text: &str) -> Failure {
    match reason {
        // The sender promises that it did nothing with it.
        Some(Reason::REFUSED_STREAM) => {
            Failure::new(Fate::Retry, Kind::Unavailable, format!("{at}: the stream was refused; tried again"))
        }
        Some(Reason::ENHANCE_YOUR_CALM) => Failure::new(
            Fate::Unknown,
            Kind::Busy,
            format!("{at}: the other side has too much to do (ENHANCE_YOUR_CALM)"),
        ),
        Some(Reason::CANCEL) => Failure::new(
            Fate::Unknown,
            Kind::Refused,
            format!(
                "{at}: cancelled by the other side; a message may be larger than OAP takes \
                 (SW_CORE_GRPC_MAX_MESSAGE_SIZE, 50 MiB)"
            ),
        ),
        _ => Failure::new(
            Fate::Unknown,
            Kind::Broken,
            format!("{at}: the connection broke ({text}); whether it arrived is unknown"),
        ),
    }
}

/// What the other side said itself.
fn told(call: &str, address: &str, status: &Status) -> Failure {
    let said = if status.message().is_empty() {
        format!("{:?}", status.code())
    } else {
        format!("{:?}: {}", status.code(), status.message())
    };
    let (fate, kind, what) = match status.code() {
        // Asked before anything is taken.
        Code::PermissionDenied | Code::Unauthenticated => (
            Fate::Retry,
            Kind::Token,
            "the token is refused: set --oap-token to what OAP has as SW_AUTHENTICATION".to_owned(),
        ),
        Code::Unimplemented => (
            Fate::Permanent,
            Kind::Unimplemented,
            "no such service there: is this OAP's receiver port (SW_RECEIVER_GRPC_PORT), and OAP 9.5 or \
             later?"
                .to_owned(),
        ),
        // OAP's watermark, which looks before anything is taken.
        Code::ResourceExhausted => {
            (Fate::Retry, Kind::Busy, "OAP has no memory left: sent again later".to_owned())
        }
        Code::Unavailable => {
            (Fate::Unknown, Kind::Unavailable, "not available: is OAP up behind its proxy?".to_owned())
        }
        Code::DeadlineExceeded => {
            (Fate::Unknown, Kind::Deadline, "not done in time: whether it arrived is unknown".to_owned())
        }
        Code::Cancelled | Code::Aborted | Code::Internal | Code::DataLoss | Code::Ok => {
            (Fate::Unknown, Kind::Broken, "no whole answer: whether it arrived is unknown".to_owned())
        }
        // tonic's own, of an answer that ended without a status.
        Code::Unknown if status.message().starts_with("protocol error:") => {
            (Fate::Unknown, Kind::Broken, "no whole answer: whether it arrived is unknown".to_owned())
        }
        Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange => {
            (Fate::Permanent, Kind::Refused, "OAP can't take it; its log says why; not sent again".to_owned())
        }
    };
    // Every call has the same token: one line for all.
    let at = if kind == Kind::Token { address.to_owned() } else { format!("{call} at {address}") };
    Failure::new(fate, kind, format!("{at}: {what} ({said})"))
}

/// What others wrote, as one line that is no longer than needed and writes nothing on a terminal.
pub(super) fn line(text: &str) -> String {
    const MOST: usize = 500;
    let mut line = String::new();
    for letter in text.chars().take(MOST) {
        line.push(if letter.is_control() { ' ' } else { letter });
    }
    if text.chars().nth(MOST).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: &Status) -> (Fate, Kind) {
        let Failure { fate, kind, text } = Failure::of("keepAlive", "oap:11800", status, &Seen::default());
        let at = if kind == Kind::Token { "oap:11800: " } else { "keepAlive at oap:11800: " };
        assert!(text.starts_with(at) && !text.contains('\n'), "{text}");
        (fate, kind)
    }

    #[test]
    fn what_oap_says_decides() {
        assert_eq!(of(&Status::permission_denied("")), (Fate::Retry, Kind::Token));
        assert_eq!(
            of(&Status::unknown("Application error\nprocessing RPC")),
            (Fate::Permanent, Kind::Refused)
        );
        assert_eq!(of(&Status::invalid_argument("x")), (Fate::Permanent, Kind::Refused));
        assert_eq!(of(&Status::unimplemented("x")), (Fate::Permanent, Kind::Unimplemented));
        assert_eq!(of(&Status::resource_exhausted("x")), (Fate::Retry, Kind::Busy));
        assert_eq!(of(&Status::unavailable("x")), (Fate::Unknown, Kind::Unavailable));
        assert_eq!(of(&Status::cancelled("x")), (Fate::Unknown, Kind::Broken));
    }

    #[test]
    fn what_the_transport_says_is_looked_for_first() {
        let h2 = |reason: Reason| Status::from_error(Box::new(h2::Error::from(reason)));
        assert_eq!(of(&h2(Reason::REFUSED_STREAM)), (Fate::Retry, Kind::Unavailable));
        assert_eq!(of(&h2(Reason::CANCEL)), (Fate::Unknown, Kind::Refused));
        assert_eq!(of(&h2(Reason::PROTOCOL_ERROR)), (Fate::Unknown, Kind::Broken));
        assert_eq!(of(&Status::from_error(Box::new(NotSent))), (Fate::Retry, Kind::Broken));
    }

    #[test]
    fn a_line_is_a_line() {
        assert_eq!(line("a\nb\u{1b}[2Jc"), "a b [2Jc");
        assert_eq!(line(&"é".repeat(600)).chars().count(), 501);
    }
}
