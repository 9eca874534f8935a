//! shop.py: a service under SkyWalking's agent that reports to a real OAP, and its load.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::deadline::Deadline;
use crate::oap::Oap;
use crate::place::Python;
use crate::target::Target;

/// Clients of the endpoint that is profiled, and their pause: it burns 120 ms each time.
const SLOW: (u32, Duration) = (10, Duration::from_millis(3_000));
/// Clients of the other one, each of which waits for half a second.
const OTHER: (u32, Duration) = (90, Duration::from_millis(1_000));
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service.
#[derive(Debug)]
pub struct Shop {
    /// Its process.
    pub target: Target,
    /// Its name in OAP.
    pub service: String,
    port: u16,
}

/// A call of a booked function.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// In which segment.
    pub segment: String,
    /// Of which function.
    pub function: String,
    /// ns since 1970.
    pub begin_ns: u64,
    /// ns since 1970.
    pub end_ns: u64,
    /// Of its thread.
    pub cpu_ns: u64,
    /// In which trace.
    pub trace: String,
    /// In which process.
    pub pid: u32,
}

impl Shop {
    /// Starts it, `gevent`, `threads` or `gunicorn`, and waits until OAP knows the service.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn start(python: &Python, mode: &str, oap: &Oap) -> Result<Self> {
        let service = format!("shop-{mode}");
        let mut command = Command::new(&python.exe);
        // Its plugins warn of what is not installed.
        command.env("SW_AGENT_LOGGING_LEVEL", "ERROR");
        let arguments = [mode, &oap.address(), &service, "the-instance"];
        let target = Target::start_by(&mut command, "shop.py", &arguments)?;
        let port = target.facts.get("port").and_then(serde_json::Value::as_u64).context("a port")?;
        let shop = Self { target, service, port: u16::try_from(port)? };
        // Each class once, so that its attributes have places.
        for path in ["/slow", "/other"] {
            get(&shop.url(path))?;
        }
        let graphql = oap.graphql();
        Deadline::usual()
            .until("the service in OAP", || Ok(graphql.services()?.contains(&shop.service).then_some(())))?;
        Ok(shop)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A hundred clients, from now on.
    pub fn load(&self) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for (path, (count, pause)) in [("/slow", SLOW), ("/other", OTHER)] {
            for number in 0..count {
                let (url, stop) = (self.url(path), Arc::clone(&stop));
                // Not all at once.
                let first = pause * number / count;
                clients.push(std::thread::spawn(move || client(&url, first, pause, &stop)));
            }
        }
        Load { stop, clients }
    }

    /// Its books, at its end.
    ///
    /// # Errors
    ///
    /// When they don't come.
    pub fn books(mut self) -> Result<Vec<Call>> {
        self.target.go()?;
        let done = self.target.hear("done")?;
        let calls = serde_json::from_value(done.get("books").cloned().context("no books")?)?;
        self.target.finish()?;
        Ok(calls)
    }
}

/// Clients at work; ended when dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<u64>>>,
}

impl Load {
    /// Ends it; how many answers there were.
    ///
    /// # Errors
    ///
    /// When one did not come.
    pub fn end(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = 0;
        for client in self.clients.drain(..) {
            client.thread().unpark();
            answers += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(answers)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn client(url: &str, first: Duration, pause: Duration, stop: &AtomicBool) -> Result<u64> {
    let mut answers = 0;
    std::thread::park_timeout(first);
    while !stop.load(Ordering::Relaxed) {
        get(url)?;
        answers += 1;
        std::thread::park_timeout(pause);
    }
    Ok(answers)
}

fn get(url: &str) -> Result<()> {
    let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build();
    let mut answer = ureq::Agent::from(config).get(url).call().with_context(|| url.to_owned())?;
    let text = answer.body_mut().read_to_string()?;
    ensure!(!text.is_empty(), "{url}: an empty answer");
    Ok(())
}

/// How long each booked function took in each segment, ms.
pub fn by_segment(calls: &[Call]) -> BTreeMap<&str, BTreeMap<&str, f64>> {
    let mut segments: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    for call in calls {
        let ms = call.end_ns.saturating_sub(call.begin_ns) as f64 / 1e6;
        *segments.entry(&call.segment).or_default().entry(&call.function).or_default() += ms;
    }
    segments
}

/// How much of a function's time lies between two moments: its wall time and its CPU time, ns.
pub fn between(calls: &[Call], function: &str, begin_ns: u64, end_ns: u64) -> (f64, f64) {
    let (mut wall, mut cpu) = (0.0, 0.0);
    for call in calls.iter().filter(|call| call.function == function) {
        let inside = call.end_ns.min(end_ns).saturating_sub(call.begin_ns.max(begin_ns)) as f64;
        wall += inside;
        cpu += call.cpu_ns as f64 * inside / call.end_ns.saturating_sub(call.begin_ns).max(1) as f64;
    }
    (wall, cpu)
}
