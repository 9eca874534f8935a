//! OAP's REST port, asked for its version and its clock.

use std::{fmt, time::Duration};

use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    config::{Address, ConfigError},
    failure::line,
    wire,
};

/// The port by default.
const DEFAULT_PORT: u16 = 12_800;
/// What of an answer is read.
const MOST: usize = 64 << 10;
/// Known to every OAP since 8.0; the time zone is of no use here.
const QUERY: &str = r#"{"query":"{version getTimeInfo{currentTimestamp}}"}"#;

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    address: Address,
    path: String,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

/// What it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// OAP's version, in its own words.
    pub version: String,
    /// Its clock, in ms since 1970.
    pub now_ms: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    version: Option<String>,
    get_time_info: Option<TimeInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TimeInfo {
    current_timestamp: Option<i64>,
}

impl Rest {
    /// Reads `http://HOST:12800`, with or without a path.
    ///
    /// # Errors
    ///
    /// What is none.
    pub fn of(text: &str) -> Result<Self, ConfigError> {
        let bad = |why: &str| {
            let text = line(text);
            ConfigError(format!("--oap-rest {text:?} is {why}; write it like http://oap:12800"))
        };
        let uri: Uri = text.trim().parse().map_err(|_| bad("no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("by TLS, which is not spoken here")),
            _ => return Err(bad("no http:// URL")),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("without a host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = uri.path().trim_end_matches('/');
        let path = if path.ends_with("/graphql") { path.to_owned() } else { format!("{path}/graphql") };
        let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
        Ok(Self { address: Address { host, port }, path })
    }

    /// Asks, and waits no longer than that.
    ///
    /// # Errors
    ///
    /// Why not, as one line.
    pub(super) async fn about(&self, wait: Duration) -> Result<About, String> {
        match timeout(wait, self.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{self}: no answer in {} s; does OAP hang?", wait.as_secs_f64())),
        }
    }

    async fn ask(&self) -> Result<About, String> {
        let stream = wire::tcp(&self.address, "REST port (12800)").await.map_err(|failure| failure.text)?;
        let failed = |error: &dyn fmt::Display| {
            line(&format!("{self}: no HTTP answer ({error}); name OAP's REST port (12800)"))
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        let _detached = tokio::spawn(async move {
            let _told = connection.await;
        });
        let request = Request::post(&self.path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(QUERY.as_bytes())))
            .map_err(|error| failed(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if !answer.status().is_success() {
            return Err(failed(&answer.status()));
        }
        let body = Limited::new(answer.into_body(), MOST).collect().await.map_err(|error| failed(&error))?;
        about(&body.to_bytes())
            .ok_or_else(|| format!("{self}: the answer is none of OAP's; name its REST port (12800)"))
    }
}

fn about(json: &[u8]) -> Option<About> {
    let data = serde_json::from_slice::<Answer>(json).ok()?.data?;
    let now_ms = data.get_time_info.and_then(|info| info.current_timestamp);
    Some(About { version: line(&data.version?), now_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_is_read() {
        let read =
            |text: &str| Rest::of(text).map(|rest| rest.to_string()).map_err(|error| error.to_string());
        assert_eq!(read("http://oap").unwrap(), "http://oap:12800/graphql");
        assert_eq!(read("http://oap:1/").unwrap(), "http://oap:1/graphql");
        assert_eq!(read("http://[::1]:2/sw").unwrap(), "http://[::1]:2/sw/graphql");
        assert_eq!(read("http://oap:1/graphql").unwrap(), "http://oap:1/graphql");
        for text in ["oap:12800", "https://oap", "", "ftp://x", "http://", "http://a b"] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("--oap-rest") && error.contains("http://oap:12800"), "{error}");
        }
    }

    #[test]
    fn an_answer_is_read() {
        let read =
            about(br#"{"data":{"version":"10.1.0-abc","getTimeInfo":{"currentTimestamp":17}}}"#).unwrap();
        assert_eq!(read, About { version: "10.1.0-abc".to_owned(), now_ms: Some(17) });
        let read = about(br#"{"data":{"version":"8","getTimeInfo":null},"errors":[]}"#).unwrap();
        assert_eq!(read.now_ms, None);
        for json in [&b"{}"[..], b"<html>", b"{\"data\":null}", b"{\"data\":{}}"] {
            assert_eq!(about(json), None);
        }
    }
}
