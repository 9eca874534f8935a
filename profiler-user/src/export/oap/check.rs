//! What of a backend works: each address, each service, by calls that register nothing.

use std::{
    future::Future,
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proto::skywalking::{
    ContinuousProfilingPolicyQuery, ContinuousProfilingServicePolicyQuery, EbpfProcessReportList,
};
use tokio::time::timeout;

use super::{
    certificate::Certificate,
    client::{Backend, NOBODY, nobodys_ebpf_tasks, nobodys_trace_tasks},
    config::{Address, Config},
    failure::{Failure, Kind},
    rest::Rest,
    tls, wire,
};

/// Clocks that differ more are worth a word: tasks begin and end by OAP's, in ms.
const SKEW_MS: i64 = 1_000;
/// So many days before its end a certificate is worth a word.
const SOON: i64 = 14;

/// What was found out about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Which.
    pub title: String,
    /// One thing each.
    pub lines: Vec<Line>,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is.
    pub what: &'static str,
    /// How it is, or why it does not work.
    pub found: Result<String, String>,
}

impl Checked {
    /// Whether everything works.
    #[must_use]
    pub fn works(&self) -> bool {
        self.lines.iter().all(|line| line.found.is_ok())
    }

    fn say(&mut self, what: &'static str, found: Result<String, String>) -> bool {
        let works = found.is_ok();
        self.lines.push(Line { what, found });
        works
    }
}

/// Checks every address, and OAP's REST port if it is named.
///
/// # Errors
///
/// When the system gives no event loop.
pub fn run(config: &Config, rest: Option<&Rest>) -> io::Result<Vec<Checked>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(all(config, rest)))
}

pub(super) async fn all(config: &Config, rest: Option<&Rest>) -> Vec<Checked> {
    let mut checked = Vec::new();
    for address in &config.addresses {
        checked.push(one(config, address).await);
    }
    if let Some(rest) = rest {
        checked.push(about(rest, config.deadlines.call).await);
    }
    checked
}

async fn one(config: &Config, address: &Address) -> Checked {
    let mut checked = Checked { title: address.to_string(), lines: Vec::new() };
    connection(&mut checked, config, address).await;
    if !checked.works() {
        return checked;
    }
    let config = Config { addresses: vec![address.clone()], ..config.clone() };
    match Backend::new(config, 0) {
        Ok(backend) => services(&mut checked, &backend).await,
        Err(error) => {
            let _not = checked.say("grpc", Err(error.to_string()));
        }
    }
    checked
}

async fn connection(checked: &mut Checked, config: &Config, address: &Address) {
    let wait = config.deadlines.connect;
    let late = || format!("{address}: nothing in {} s; does a firewall drop it?", wait.as_secs_f64());
    let begins = Instant::now();
    let stream = match timeout(wait, wire::tcp(address, "gRPC port")).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(failure)) => {
            let _not = checked.say("tcp", Err(failure.text));
            return;
        }
        Err(_) => {
            let _not = checked.say("tcp", Err(late()));
            return;
        }
    };
    let peer = stream.peer_addr().map_or_else(|_| String::new(), |peer| format!("{peer}, "));
    let _works = checked.say("tcp", Ok(format!("{peer}{:.1} ms", begins.elapsed().as_secs_f64() * 1e3)));
    let Some(settings) = &config.tls else {
        return;
    };
    let client = match tls::client(settings) {
        Ok(client) => client,
        Err(error) => {
            let _not = checked.say("tls", Err(error.to_string()));
            return;
        }
    };
    let found = match timeout(wait, wire::handshake(client, address, stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let text = certificates.first().and_then(|der| Certificate::of(der)).map_or_else(
                || "a certificate that can't be read".to_owned(),
                |certificate| described(&certificate, i64::try_from(now).unwrap_or(i64::MAX)),
            );
            Ok(if settings.insecure { format!("{text}; NOT VERIFIED, as asked for") } else { text })
        }
        Ok(Err(failure)) => Err(failure.text),
        Err(_) => Err(late()),
    };
    let _works = checked.say("tls", found);
}

fn described(certificate: &Certificate, now: i64) -> String {
    let Certificate { issuer, last_day, ends } = certificate;
    let left = ends.saturating_sub(now).div_euclid(86_400);
    let soon = match left {
        ..0 => ": EXPIRED",
        0..=SOON => ": renew it SOON",
        _ => "",
    };
    format!("signed by {issuer}, valid until {last_day} ({left} days){soon}")
}

async fn services(checked: &mut Checked, backend: &Backend) {
    let token =
        if backend.config().token.is_some() { "sent, and not refused" } else { "none sent, none wanted" };
    // The first call tells what holds for all of them.
    if let Err(failure) = backend.trace_tasks(nobodys_trace_tasks()).await {
        let what = if failure.kind == Kind::Token { "token" } else { "trace tasks" };
        let ends = failure.is_the_backends();
        let _not = checked.say(what, Err(failure.text));
        if ends {
            return;
        }
    } else {
        let _works = checked.say("token", Ok(token.to_owned())) && checked.say("trace tasks", works());
    }
    let nobodys =
        ContinuousProfilingServicePolicyQuery { service_name: NOBODY.to_owned(), uuid: String::new() };
    let policy = ContinuousProfilingPolicyQuery { policies: vec![nobodys] };
    // An empty list registers nothing, and an empty stream is nothing.
    let _all = tried(checked, "snapshots", backend.upload_snapshots(Vec::new())).await
        && tried(checked, "processes", backend.report_processes(EbpfProcessReportList::default())).await
        && tried(checked, "ebpf tasks", backend.ebpf_tasks(nobodys_ebpf_tasks())).await
        && tried(checked, "policies", backend.policies(policy)).await
        && tried(checked, "span events", backend.upload_span_events(Vec::new())).await;
}

fn works() -> Result<String, String> {
    Ok("ok".to_owned())
}

/// False: the others would fail as well.
async fn tried<A>(
    checked: &mut Checked,
    what: &'static str,
    call: impl Future<Output = Result<A, Failure>>,
) -> bool {
    match call.await {
        Ok(_) => checked.say(what, works()),
        Err(failure) => {
            let goes_on = !failure.is_the_backends();
            let _not = checked.say(what, Err(failure.text));
            goes_on
        }
    }
}

async fn about(rest: &Rest, wait: Duration) -> Checked {
    let mut checked = Checked { title: rest.to_string(), lines: Vec::new() };
    let begins = (SystemTime::now(), Instant::now());
    match rest.about(wait).await {
        Err(error) => {
            let _not = checked.say("version", Err(error));
        }
        Ok(about) => {
            let took = begins.1.elapsed();
            let _works = checked.say("version", Ok(about.version));
            let middle = begins.0.duration_since(UNIX_EPOCH).map(|since| since + took / 2);
            if let (Some(theirs), Ok(ours)) = (about.now_ms, middle) {
                let ours = i64::try_from(ours.as_millis()).unwrap_or(i64::MAX);
                let give = i64::try_from(took.as_millis() / 2 + 1).unwrap_or(i64::MAX);
                let _works = checked.say("clock", Ok(skew(theirs.saturating_sub(ours), give)));
            }
        }
    }
    checked
}

/// `give`: what the way there and back may hide.
fn skew(ms: i64, give: i64) -> String {
    let apart = ms.saturating_abs();
    if apart <= give {
        return format!("the same as here, within {give} ms");
    }
    let side = if ms > 0 { "ahead of" } else { "behind" };
    let word = if apart > SKEW_MS.saturating_add(give) {
        ": SET ONE OF THEM, tasks begin and end by OAP's"
    } else {
        ""
    };
    format!("{apart} ms {side} this one's (within {give} ms){word}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            config::{Tls, Token},
            faults::{
                pki::Ca,
                run,
                server::{Does, Server, answering, closed},
            },
        },
        *,
    };

    fn shown(checked: &Checked) -> Vec<String> {
        let line = |line: &Line| match &line.found {
            Ok(text) => format!("{}: {text}", line.what),
            Err(text) => format!("{}: NO {text}", line.what),
        };
        checked.lines.iter().map(line).collect()
    }

    #[test]
    fn what_works_is_said_of_each_address() {
        run(async {
            let server = Server::that(Does::Answer).await;
            let mut config = server.config();
            config.addresses.push(closed().await);
            let checked = all(&config, None).await;
            assert!(checked[0].works() && !checked[1].works());
            let lines = shown(&checked[0]);
            assert!(lines[0].starts_with(&format!("tcp: {}, ", server.address)), "{lines:?}");
            assert_eq!(
                lines[1..],
                [
                    "token: none sent, none wanted",
                    "trace tasks: ok",
                    "snapshots: ok",
                    "processes: ok",
                    "ebpf tasks: ok",
                    "policies: ok",
                    "span events: ok"
                ]
            );
            assert!(shown(&checked[1])[0].contains("nobody listens there"));
            // Nothing that is sent carries anything but nobody's name.
            assert!(server.came().iter().all(|came| came.bytes < 50));
        });
    }

    #[test]
    fn a_service_that_is_missing_is_told_and_the_rest_is_tried() {
        run(async {
            let server = Server::that(Does::Answer).await;
            server.does(|path| {
                if path.contains("Continuous") { Does::Status(12, "Method not found") } else { Does::Answer }
            });
            let lines = shown(&all(&server.config(), None).await[0]);
            assert!(lines[6].starts_with("policies: NO queryPolicies at"), "{lines:?}");
            assert_eq!(lines[7], "span events: ok");
        });
    }

    #[test]
    fn a_token_that_is_refused_ends_it() {
        run(async {
            let server = Server::that(Does::Answer).await;
            server.wants("secret");
            let mut config = server.config();
            config.token = Some(Token("wrong".parse().unwrap()));
            let lines = shown(&all(&config, None).await[0]);
            assert_eq!(lines.len(), 2);
            assert!(lines[1].starts_with("token: NO") && !lines[1].contains("wrong"), "{lines:?}");
            config.token = Some(Token("secret".parse().unwrap()));
            assert_eq!(shown(&all(&config, None).await[0])[1], "token: sent, and not refused");
        });
    }

    #[test]
    fn a_certificate_is_shown_or_why_it_is_not_believed() {
        run(async {
            let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new("Shop's CA"));
            let server = Server::with_tls(Does::Answer, Some(ca.sign("127.0.0.1").server(None))).await;
            let mut config = server.config();
            config.tls = Some(Tls { insecure: true, ..Tls::default() });
            let line = &shown(&all(&config, None).await[0])[1];
            assert!(line.starts_with("tls: signed by Shop's CA, valid until 2049-01-01 ("), "{line}");
            assert!(line.ends_with("NOT VERIFIED, as asked for"), "{line}");
            config.tls = Some(Tls { ca: Some(Ca::new("other").file(folder.path())), ..Tls::default() });
            let line = &shown(&all(&config, None).await[0])[1];
            assert!(line.starts_with("tls: NO ") && line.contains("--oap-ca"), "{line}");
        });
    }

    #[test]
    fn the_rest_port_tells_version_and_clock() {
        const ANSWER: &[u8] =
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n\
            {\"data\":{\"version\":\"10.1.0\",\"getTimeInfo\":{\"currentTimestamp\":1000000000000}}}";
        run(async {
            let rest = |address: Address| Rest::of(&format!("http://{address}")).unwrap();
            let checked = about(&rest(answering(ANSWER).await), Duration::from_secs(10)).await;
            let lines = shown(&checked);
            assert_eq!(lines[0], "version: 10.1.0");
            assert!(
                lines[1].contains("behind this one's") && lines[1].contains("SET ONE OF THEM"),
                "{lines:?}"
            );
            for (address, says) in [
                (answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await, "404"),
                (answering(b"SSH-2.0-x\r\n").await, "no HTTP answer"),
                (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await, "none of OAP's"),
                (closed().await, "nobody listens"),
            ] {
                let lines = shown(&about(&rest(address), Duration::from_secs(10)).await);
                assert!(lines[0].starts_with("version: NO") && lines[0].contains(says), "{lines:?}");
            }
        });
    }

    #[test]
    fn clocks_that_differ_are_worth_a_word() {
        assert_eq!(skew(-3, 4), "the same as here, within 4 ms");
        assert_eq!(skew(20, 4), "20 ms ahead of this one's (within 4 ms)");
        assert!(skew(-5_000, 4).starts_with("5000 ms behind this one's (within 4 ms): SET"));
        assert!(skew(i64::MIN, 1).contains("SET"));
    }

    #[test]
    fn a_certificate_that_ends_soon_is_worth_a_word() {
        let certificate =
            |ends| Certificate { issuer: "CA".to_owned(), last_day: "2030-01-01".to_owned(), ends };
        let now = 1_893_456_000;
        assert!(described(&certificate(now + 100 * 86_400), now).ends_with("(100 days)"));
        assert!(described(&certificate(now + 3 * 86_400), now).ends_with("(3 days): renew it SOON"));
        assert!(described(&certificate(now - 1), now).ends_with("(-1 days): EXPIRED"));
    }
}
