//! The backend's client against what a real OAP can't be asked to do.

pub(super) mod pki;
pub(super) mod server;
mod spool;
mod tls;

use std::{future::Future, time::Duration};

use proto::skywalking::{EbpfProcessPingPkgList, ProfileTaskCommandQuery, ThreadSnapshot};

use self::server::{Does, Server, answering, closed};
use super::{
    client::Backend,
    config::{Address, Config, Deadlines, Token},
    failure::{Failure, Fate, Kind},
};

/// Runs a test on the runtime that the product has, and not for ever.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.unwrap() });
}

pub(super) fn backend(config: Config) -> Backend {
    Backend::new(config, 1).unwrap()
}

/// A harmless call.
pub(super) async fn ask(backend: &Backend) -> Result<(), Failure> {
    backend.trace_tasks(ProfileTaskCommandQuery::default()).await.map(drop)
}

async fn upload(backend: &Backend, count: usize) -> Result<(), Failure> {
    backend.upload_snapshots(vec![ThreadSnapshot::default(); count]).await.map(drop)
}

async fn failure(does: Does) -> (Failure, Backend) {
    let server = Server::that(does).await;
    let backend = backend(server.config());
    (upload(&backend, 3).await.unwrap_err(), backend)
}

fn check(failure: &Failure, fate: Fate, kind: Kind, says: &str) {
    assert_eq!((failure.fate, failure.kind), (fate, kind), "{failure}");
    assert!(failure.text.contains(says) && !failure.text.contains('\n'), "{failure}");
}

#[test]
fn a_call_arrives_with_its_token() {
    run(async {
        let server = Server::that(Does::Answer).await;
        server.wants("secret");
        let mut config = server.config();
        let backend_without = backend(config.clone());
        for token in [None, Some("wrong")] {
            config.token = token.map(|token| Token(token.parse().unwrap()));
            let backend = backend(config.clone());
            check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Token, "--oap-token");
            assert!(backend.pause().is_some());
        }
        check(&upload(&backend_without, 2).await.unwrap_err(), Fate::Retry, Kind::Token, "PermissionDenied");
        config.token = Some(Token("secret".parse().unwrap()));
        let backend = backend(config);
        ask(&backend).await.unwrap();
        upload(&backend, 1_000).await.unwrap();
        let _none = backend.keep_processes_alive(EbpfProcessPingPkgList::default()).await.unwrap();
        let came = server.came();
        let paths: Vec<&str> = came.iter().rev().take(3).map(|came| came.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/skywalking.v3.EBPFProcessService/keepAlive",
                "/skywalking.v3.ProfileTask/collectSnapshot",
                "/skywalking.v3.ProfileTask/getProfileTaskCommands",
            ]
        );
        assert!(came.iter().all(|came| came.authority == server.address.to_string()));
        assert_eq!(came[came.len() - 2].bytes, 5_000);
        let health = backend.health();
        assert_eq!((health.connections, health.answered, health.failed), (1, 3, 0));
        assert_eq!(health.connected, Some(server.address.to_string()));
    });
}

#[test]
fn nobody_there_is_sure_to_have_got_nothing() {
    run(async {
        let backend = backend(Config::plain(closed().await));
        check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Unreachable, "nobody listens there");
        let pause = backend.pause().unwrap();
        assert!(pause <= Duration::from_millis(500));
        // In the pause nothing is tried.
        check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Paused, "nobody listens there");
        assert_eq!(backend.health().failed, 1);
        backend.paused().await;
        check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Unreachable, "nobody listens there");

        let unknown = Address { host: "oap.invalid".to_owned(), port: 11_800 };
        let backend = self::backend(Config::plain(unknown));
        check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Unreachable, "oap.invalid:11800: ");
    });
}

#[test]
fn the_next_address_is_taken() {
    run(async {
        let (first, second) = (Server::that(Does::Answer).await, Server::that(Does::Answer).await);
        let mut config = first.config();
        config.addresses = vec![closed().await, first.address.clone(), second.address.clone()];
        let backend = backend(config);
        ask(&backend).await.unwrap();
        assert_eq!(backend.health().connected, Some(first.address.to_string()));
        // One that says that it is not available is left, without a pause.
        first.does(|_| Does::Status(14, "no healthy upstream"));
        check(&ask(&backend).await.unwrap_err(), Fate::Unknown, Kind::Unavailable, "no healthy upstream");
        ask(&backend).await.unwrap();
        assert_eq!(backend.health().connected, Some(second.address.to_string()));
        assert_eq!(backend.health().connections, 2);
    });
}

#[test]
fn one_that_comes_back_is_connected_to_again() {
    run(async {
        let server = Server::that(Does::Answer).await;
        let backend = backend(server.config());
        for connections in 1..4 {
            ask(&backend).await.unwrap();
            assert_eq!(backend.health().connections, connections);
            server.hang_up();
            while backend.health().connected.is_some() {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(backend.health().failed, 0);
    });
}

#[test]
fn a_late_answer_is_not_waited_for() {
    run(async {
        let server = Server::that(Does::Answer).await;
        server.does(|path| if path.ends_with("keepAlive") { Does::Answer } else { Does::Wait });
        let mut config = server.config();
        config.deadlines = Deadlines { call: Duration::from_millis(50), ..Deadlines::default() };
        let backend = backend(config);
        // An upload is under way, and has more time.
        let uploading = tokio::spawn({
            let backend = backend.clone();
            async move { upload(&backend, 10).await }
        });
        while server.came().is_empty() {
            tokio::task::yield_now().await;
        }
        check(&ask(&backend).await.unwrap_err(), Fate::Unknown, Kind::Deadline, "no answer in 0.05 s");
        backend.paused().await;
        let _none = backend.keep_processes_alive(EbpfProcessPingPkgList::default()).await.unwrap();
        assert_eq!(backend.health().connections, 2);
        server.go_on();
        uploading.await.unwrap().unwrap();
    });
}

#[test]
fn an_upload_without_a_whole_answer_has_an_unknown_fate() {
    run(async {
        let (broken, _) = failure(Does::HalfClose).await;
        check(&broken, Fate::Unknown, Kind::Broken, "whether it arrived is unknown");
        let (broken, _) = failure(Does::Garbage).await;
        check(&broken, Fate::Unknown, Kind::Broken, "whether it arrived is unknown");
        let (broken, _) = failure(Does::HangUp).await;
        check(&broken, Fate::Unknown, Kind::Broken, "the connection broke");
        let (cancelled, backend) = failure(Does::Reset(h2::Reason::CANCEL)).await;
        check(&cancelled, Fate::Unknown, Kind::Refused, "SW_CORE_GRPC_MAX_MESSAGE_SIZE");
        assert_eq!(backend.pause(), None);
    });
}

#[test]
fn what_was_refused_before_it_was_taken_is_sent_again() {
    run(async {
        let (busy, backend) = failure(Does::Status(8, "watermark")).await;
        check(&busy, Fate::Retry, Kind::Busy, "watermark");
        assert!(backend.pause().unwrap() > Duration::from_secs(2));
        let (refused, _) = failure(Does::Reset(h2::Reason::REFUSED_STREAM)).await;
        check(&refused, Fate::Retry, Kind::Unavailable, "refused");
    });
}

#[test]
fn what_oap_cannot_take_is_not_sent_again_and_the_rest_goes_on() {
    run(async {
        let (unknown, backend) = failure(Does::Status(2, "Application error processing RPC")).await;
        check(&unknown, Fate::Permanent, Kind::Refused, "Application error processing RPC");
        assert_eq!((backend.pause(), backend.health().connected.is_some()), (None, true));
        let (none, backend) = failure(Does::Status(12, "Method not found")).await;
        check(&none, Fate::Permanent, Kind::Unimplemented, "SW_RECEIVER_GRPC_PORT");
        assert_eq!(backend.pause(), None);
    });
}

#[test]
fn what_is_no_grpc_is_named() {
    run(async {
        for (bytes, says) in [
            (&b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"[..], "HTTP/1"),
            (b"220 mail.example ESMTP\r\n", "no gRPC"),
            (b"", "hangs up without a word"),
        ] {
            let backend = backend(Config::plain(answering(bytes).await));
            check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::NotGrpc, says);
        }
        let backend = backend(Config::plain(answering(&[0x15, 3, 1, 0, 2, 2, 70]).await));
        check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Tls, "--oap-tls");
        let (bad_gateway, _) = failure(Does::Http(502)).await;
        check(&bad_gateway, Fate::Unknown, Kind::NotGrpc, "502");
        let (refused, _) = failure(Does::Http(403)).await;
        check(&refused, Fate::Retry, Kind::NotGrpc, "403");
        let (large, _) = failure(Does::Http(413)).await;
        check(&large, Fate::Permanent, Kind::NotGrpc, "413");
        let (slow, _) = failure(Does::Http(408)).await;
        check(&slow, Fate::Unknown, Kind::NotGrpc, "408");
    });
}
