//! What `record` serves to SkyWalking's OAP meanwhile.

use std::{
    fs,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use clap::Args;

use super::{Failure, around::Around, backend, record::duration, signals};
use crate::export::oap::{
    client::Backend,
    continuous::Gauges,
    identity::{Given, Surroundings, check_layer},
    serve::{self, Serve, Serving, Status},
    service::Choice,
    spool::{Place, Spool},
    tap::Tap,
};
use crate::kernel::tick_ns;

/// A function of 100 ms within 5 %, as trace profiling shows it, takes ticks of 2 ms.
pub(super) const RATE: u32 = 499;

/// The end is said to take its time when it does.
const SILENT: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
// It is a part of `record`'s, whose group has the same name.
#[group(skip)]
pub(super) struct Arguments {
    #[command(flatten)]
    backend: backend::Backend,
    /// Attach waits and blocks that last so long to their spans in OAP, without a task [without TIME: 10ms]
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "10ms", value_parser = duration)]
    span_events: Option<Duration>,
    /// The service's name in OAP, where no agent in the process says it
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The instance's
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// OAP's layer of it: GENERAL, K8S_SERVICE, MESH or MESH_DP [default: GENERAL]
    #[arg(long, value_name = "LAYER")]
    layer: Option<String>,
}

impl Arguments {
    /// The backend, if one is named; refuses what makes no sense before anything is begun.
    pub(super) fn backend(&self) -> Result<Option<Backend>, Failure> {
        check_layer(&self.given()).map_err(|error| Failure::usage(error.to_string()))?;
        if let Some(config) = self.backend.config()? {
            let seed = u64::from(std::process::id());
            return Ok(Some(Backend::new(config, seed)?));
        }
        let unused = [
            ("--span-events", self.span_events.is_some()),
            ("--service", self.service.is_some()),
            ("--instance", self.instance.is_some()),
            ("--layer", self.layer.is_some()),
        ];
        match unused.iter().chain(&self.backend.flags()).find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Failure::usage(format!(
                "{flag} is for SkyWalking's OAP, and none is named: give --oap HOST:PORT too"
            ))),
            None => Ok(None),
        }
    }

    fn given(&self) -> Given {
        Given { service: self.service.clone(), instance: self.instance.clone(), layer: self.layer.clone() }
    }

    /// Begins to serve, with so many ticks a second.
    pub(super) fn begin(&self, backend: Backend, rate: u32) -> Result<(Serving, Tap), Failure> {
        let config = backend.config();
        let queue_bytes = config.queue_bytes;
        let place = config.spool.clone().map(|directory| Place { directory, bytes: config.spool_bytes });
        let spool = place.map(Spool::open).transpose().map_err(|error| Failure::usage(error.to_string()))?;
        let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(",");
        // The kernel's own: <https://docs.kernel.org/admin-guide/sysctl/kernel.html#random>
        let agent = fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(|error| Failure::failed(format!("no UUID can be had of the kernel: {error}")))?;
        let serving = Serving::begin(Serve {
            backend,
            choice: Choice {
                given: self.given(),
                span_events: self.span_events,
                tick_ns: if rate == 0 { 0 } else { tick_ns(rate) },
            },
            agent: agent.trim().to_owned(),
            queue_bytes,
            spool,
            patience: serve::PATIENCE,
            around: Box::new(Around::of_oap(&addresses)),
            say: Box::new(|line| say!("greenscope: {line}")),
        });
        serving.map_err(|error| Failure::failed(format!("OAP can't be served: {error}")))
    }
}

/// Sends what is left; a signal that comes from now on ends that.
pub(super) fn finish(serving: Serving, stop: &UnixStream) -> Status {
    signals::forget(stop);
    let begins = Instant::now();
    let mut said = false;
    serving.finish(|wait| {
        let stops = signals::comes(stop, wait).unwrap_or(false);
        if !said && !stops && begins.elapsed() >= SILENT {
            said = true;
            let seconds = serve::PATIENCE.as_secs();
            say!("sending what is left to OAP, for {seconds} s at most (Ctrl-C ends it)");
        }
        stops
    })
}

impl serve::Around for Around {
    fn surroundings(&mut self, pid: u32) -> Surroundings {
        Self::of(pid)
    }

    fn claim(&mut self, pid: u32) -> bool {
        self.claim(pid)
    }

    fn release(&mut self, pid: u32) {
        self.release(pid);
    }

    fn gauges(&mut self, pid: u32) -> Gauges {
        self.look(pid)
    }
}
