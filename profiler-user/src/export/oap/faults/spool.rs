//! What waits on disk, from one run to the next.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::skywalking::{EbpfProfilingData, SpanAttachedEvent, ThreadSnapshot};
use tokio::task::spawn_blocking;

use super::{
    super::{
        batch::Batch,
        config::Config,
        continuous::Gauges,
        identity::{Given, Surroundings},
        serve::{Around, Serve, Serving, Status},
        service::Choice,
        spool::{Place, Spool},
    },
    backend, closed, run,
    server::{Does, Server},
};
use crate::profile::event::{Event, Feed as _, Process};

/// There is no process.
struct Nothing;

impl Around for Nothing {
    fn surroundings(&mut self, _pid: u32) -> Surroundings {
        Surroundings::default()
    }

    fn claim(&mut self, _pid: u32) -> bool {
        true
    }

    fn release(&mut self, _: u32) {}

    fn gauges(&mut self, _pid: u32) -> Gauges {
        Gauges::default()
    }
}

fn place(directory: &Path) -> Place {
    Place { directory: directory.to_owned(), bytes: 1 << 20 }
}

/// A run of a process that does nothing: it sends what is there, and ends. How it stood, and what
/// it said.
async fn serve(config: Config, directory: &Path, patience: Duration) -> (Status, Vec<String>) {
    let command = vec!["python".to_owned()];
    let process = Process { pid: 1, parent: None, command, greenlets: true, tracer: None };
    serve_of(Some(process), config, directory, patience).await
}

async fn serve_of(
    process: Option<Process>,
    config: Config,
    directory: &Path,
    patience: Duration,
) -> (Status, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&lines);
    let (serving, mut tap) = Serving::begin(Serve {
        backend: backend(config),
        choice: Choice { given: Given::default(), span_events: None, tick_ns: 0 },
        agent: "agent".to_owned(),
        queue_bytes: 1 << 20,
        spool: Some(Spool::open(place(directory)).unwrap()),
        patience,
        around: Box::new(Nothing),
        say: Box::new(move |line| said.lock().unwrap().push(line.to_owned())),
    })
    .unwrap();
    if let Some(process) = process {
        tap.take(Event::Began(process));
    }
    drop(tap);
    let status = spawn_blocking(|| {
        serving.finish(|wait| {
            std::thread::park_timeout(wait);
            false
        })
    })
    .await
    .unwrap();
    let lines = std::mem::take(&mut *lines.lock().unwrap());
    (status, lines)
}

fn fill(directory: &Path) {
    let mut spool = Spool::open(place(directory)).unwrap();
    for batch in [
        Batch::Ebpf(vec![EbpfProfilingData::default()]),
        Batch::Snapshots(vec![ThreadSnapshot::default()]),
        Batch::Events(vec![SpanAttachedEvent::default()]),
    ] {
        spool.push(&batch.encode()).unwrap();
    }
}

/// The methods of uploads that came.
fn uploads(server: &Server) -> VecDeque<String> {
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let all = server.came().into_iter().map(|came| last(&came.path));
    all.filter(|name| name.starts_with("collect")).collect()
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn what_a_former_run_left_is_sent_in_its_order_when_oap_is_back() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let (status, lines) =
            serve(Config::plain(closed().await), directory.path(), Duration::from_millis(300)).await;
        assert_eq!((status.sent, status.spooled, status.dropped, status.unknown), (0, 3, 0, 0));
        assert!(status.to_string().contains(", 3 spooled, 0 dropped"), "{status}");
        assert!(lines.iter().any(|line| line.starts_with("3 batches are left in ")), "{lines:?}");

        let server = Server::that(Does::Answer).await;
        let (status, _) = serve(server.config(), directory.path(), LONG).await;
        assert_eq!((status.sent, status.spooled, status.dropped, status.unknown), (3, 0, 0, 0));
        assert_eq!(uploads(&server), ["collectProfilingData", "collectSnapshot", "collect"]);
        let (status, lines) = serve(server.config(), directory.path(), LONG).await;
        assert_eq!((status.sent, uploads(&server).len(), lines.len()), (0, 3, 0));
    });
}

#[test]
fn what_was_under_way_at_the_end_is_of_unknown_fate_and_the_rest_stays() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let server = Server::that(Does::Answer).await;
        server.does(|path| if path.contains("/collect") { Does::Wait } else { Does::Answer });
        let (status, _) = serve(server.config(), directory.path(), Duration::from_secs(2)).await;
        assert_eq!((status.sent, status.spooled, status.dropped, status.unknown), (0, 2, 0, 1));
        server.does(|_| Does::Answer);
        let (status, _) = serve(server.config(), directory.path(), LONG).await;
        assert_eq!((status.sent, status.spooled, status.unknown), (2, 0, 0));
        assert_eq!(uploads(&server), ["collectProfilingData", "collectSnapshot", "collect"]);
    });
}

#[test]
fn a_recording_that_does_not_begin_sends_nothing() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let server = Server::that(Does::Wait).await;
        let (status, _) = serve_of(None, server.config(), directory.path(), LONG).await;
        assert_eq!((status.sent, status.spooled, status.unknown), (0, 3, 0));
        assert_eq!(uploads(&server), VecDeque::<String>::new());
    });
}

#[test]
fn a_backend_that_is_no_oap_gets_nothing() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let patience = Duration::from_millis(300);
        for (code, says) in [(12, "SW_RECEIVER_GRPC_PORT"), (14, "OAP up behind its proxy"), (16, "token")] {
            let server = Server::that(Does::Status(code, "no")).await;
            let (status, lines) = serve(server.config(), directory.path(), patience).await;
            assert_eq!((status.sent, status.spooled, status.unknown, status.refused), (0, 3, 0, 0));
            assert!(lines.iter().any(|line| line.contains(says)), "{lines:?}");
            assert_eq!(uploads(&server), VecDeque::<String>::new());
        }
    });
}
