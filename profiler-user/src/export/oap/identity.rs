//! What OAP calls a process: its service, its instance, its own name, and by which rule.
//!
//! Where the process has an agent the names are that agent's, so that OAP shows one service
//! and not two.

use std::{borrow::Cow, fmt};

use super::symbols::clean;
use crate::{profile::TracerRow, trace::Source};

/// Characters that OAP keeps of a service's and an instance's name (`NamingControl`).
const MOST_NAME: usize = 70;
/// Characters of a process's name; 500 are OAP's column.
const MOST_PROCESS: usize = 200;
/// The layer of services with a language agent.
const LAYER: &str = "GENERAL";
/// The layers that OAP's eBPF profiling has a page for.
const LAYERS: [&str; 4] = ["GENERAL", "K8S_SERVICE", "MESH", "MESH_DP"];

/// What is known of a process.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its pid.
    pub pid: u32,
    /// What made it is another of its service.
    pub is_child: bool,
    /// Its command line.
    pub command: &'a [String],
    /// Its environment, `NAME=VALUE`.
    pub environment: &'a [String],
    /// The text of `/proc/PID/cgroup`.
    pub cgroup: &'a str,
    /// The name of its host.
    pub host: &'a str,
    /// What tells of requests in it.
    pub tracer: Option<&'a TracerRow>,
}

/// What only the system tells of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Its environment, `NAME=VALUE`.
    pub environment: Vec<String>,
    /// The text of `/proc/PID/cgroup`.
    pub cgroup: String,
    /// The name of its host.
    pub host: String,
    /// It runs the same program as the process that made it.
    pub is_child: bool,
}

/// What the user says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The service's name.
    pub service: Option<String>,
    /// The instance's.
    pub instance: Option<String>,
    /// The layer.
    pub layer: Option<String>,
}

/// By which rule a service has its name: the first that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// SkyWalking's agent in the process says it.
    Agent,
    /// It has none, and that of a process that it made says it: a server's master.
    Workers,
    /// OpenTelemetry's resource says it.
    Resource,
    /// The user says it.
    Given,
    /// A variable of its environment does.
    Environment(&'static str),
    /// The application of gunicorn or uWSGI.
    Application,
    /// The unit of systemd.
    Unit,
    /// Its command.
    Command,
}

impl Rule {
    /// Nobody said it who would know.
    #[must_use]
    pub const fn is_guess(self) -> bool {
        matches!(self, Self::Application | Self::Unit | Self::Command)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("SkyWalking's agent in the process"),
            Self::Workers => f.write_str("SkyWalking's agent in its workers"),
            Self::Resource => f.write_str("OpenTelemetry's resource"),
            Self::Given => f.write_str("--service"),
            Self::Environment(name) => write!(f, "{name} in its environment"),
            Self::Application => f.write_str("the server's application"),
            Self::Unit => f.write_str("systemd's unit"),
            Self::Command => f.write_str("its command"),
        }
    }
}

/// What OAP calls a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The layer.
    pub layer: String,
    /// The service.
    pub service: String,
    /// The instance.
    pub instance: String,
    /// The process, unique in its instance.
    pub process: String,
    /// How the service got its name.
    pub rule: Rule,
}

impl Identity {
    /// A server's master is of its workers' service.
    pub fn join(&mut self, worker: &Self) {
        self.layer.clone_from(&worker.layer);
        self.service.clone_from(&worker.service);
        self.rule = Rule::Workers;
    }
}

/// A layer that OAP does not know: it ends the call, and what comes after it is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--layer {0}: OAP's eBPF profiling has {known}", known = LAYERS.join(", "))]
pub struct UnknownLayer(String);

/// Whether OAP knows the layer that the user gave.
///
/// # Errors
///
/// When it does not.
pub fn check_layer(given: &Given) -> Result<&str, UnknownLayer> {
    let layer = given.layer.as_deref().unwrap_or(LAYER);
    if LAYERS.contains(&layer) { Ok(layer) } else { Err(UnknownLayer(layer.to_owned())) }
}

/// Names a process.
///
/// # Errors
///
/// When the layer that was given is none of OAP's.
pub fn name(facts: &Facts<'_>, given: &Given) -> Result<Identity, UnknownLayer> {
    let layer = check_layer(given)?;
    let (service, rule) = service(facts, given);
    let tracer = facts.tracer.and_then(|tracer| tracer.instance.clone());
    let instance = tracer
        .or_else(|| given.instance.clone())
        .or_else(|| variable(facts, "SW_AGENT_INSTANCE_NAME").map(str::to_owned))
        .or_else(|| resource(facts, "service.instance.id").map(str::to_owned))
        .unwrap_or_else(|| facts.host.to_owned());
    let process = format!("{}-{}", role(facts), facts.pid);
    Ok(Identity {
        layer: layer.to_owned(),
        service: cut(&service, MOST_NAME),
        instance: cut(&instance, MOST_NAME),
        process: cut(&process, MOST_PROCESS),
        rule,
    })
}

fn service(facts: &Facts<'_>, given: &Given) -> (String, Rule) {
    let tracer = facts.tracer.and_then(|tracer| Some((tracer.source, tracer.service.clone()?)));
    if let Some((Source::Agent, service)) = tracer {
        return (service, Rule::Agent);
    }
    if let Some(service) = &given.service {
        return (service.clone(), Rule::Given);
    }
    if let Some((_, service)) = tracer {
        return (service, Rule::Resource);
    }
    for name in ["SW_AGENT_NAME", "OTEL_SERVICE_NAME"] {
        if let Some(service) = variable(facts, name) {
            return (service.to_owned(), Rule::Environment(name));
        }
    }
    if let Some(service) = resource(facts, "service.name") {
        return (service.to_owned(), Rule::Environment("OTEL_RESOURCE_ATTRIBUTES"));
    }
    if let Some(application) = application(facts.command) {
        return (application.into_owned(), Rule::Application);
    }
    if let Some(unit) = unit(facts.cgroup) {
        return (unit.to_owned(), Rule::Unit);
    }
    (command(facts.command), Rule::Command)
}

/// A variable that is set to something.
fn variable<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a str> {
    let values = facts.environment.iter().filter_map(|pair| pair.split_once('='));
    values.filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value).next()
}

/// <https://opentelemetry.io/docs/specs/otel/resource/sdk/#specifying-resource-information-via-an-environment-variable>
fn resource<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a str> {
    let pairs = variable(facts, "OTEL_RESOURCE_ATTRIBUTES")?.split(',');
    let mut values = pairs.filter_map(|pair| pair.split_once('='));
    values
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
        .filter(|value| !value.is_empty())
}

/// What gunicorn or uWSGI serves.
fn application(command: &[String]) -> Option<Cow<'_, str>> {
    let first = command.first()?;
    // With setproctitle: `gunicorn: worker [app]`.
    if let Some((_, title)) = first.split_once("gunicorn: ")
        && let Some((_, name)) = title.split_once('[')
    {
        return Some(Cow::Borrowed(name.trim_end_matches(']'))).filter(|name| !name.is_empty());
    }
    let server = command.iter().take(3).map(|word| last_part(word)).find(|word| is_server(word))?;
    let after = |names: &[&str]| {
        let mut words = command.iter().skip_while(|word| !names.contains(&word.as_str()));
        words.nth(1).map(String::as_str)
    };
    let named = if server.starts_with("gunicorn") {
        // The application is the one word with a module in front of a colon; addresses are not.
        let is_module = |word: &&String| {
            word.split_once(':').is_some_and(|(module, name)| {
                let identifier = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
                !module.is_empty()
                    && module.chars().all(identifier)
                    && module.contains(|c: char| c.is_alphabetic())
                    && name.starts_with(|c: char| c.is_alphabetic() || c == '_')
            })
        };
        after(&["--name", "-n"]).or_else(|| command.iter().rev().find(is_module).map(String::as_str))
    } else {
        after(&["--procname-prefix", "--module", "-w", "--wsgi-file", "--mount"]).map(last_part)
    };
    named.map(|name| Cow::Borrowed(name.split_once(':').map_or(name, |(module, _)| module)))
}

fn is_server(word: &str) -> bool {
    word.starts_with("gunicorn") || word.starts_with("uwsgi")
}

/// `/system.slice/shop.service`: the innermost one.
fn unit(cgroup: &str) -> Option<&str> {
    let paths = cgroup.lines().filter_map(|line| line.rsplit_once(':').map(|(_, path)| path));
    let mut units = paths.filter_map(|path| path.rsplit('/').find_map(|part| part.strip_suffix(".service")));
    // A user's session is no service of its own.
    units.find(|unit| !unit.starts_with("user@"))
}

/// The script, or the module.
fn command(command: &[String]) -> String {
    let mut words = command.iter().skip(1).peekable();
    while let Some(word) = words.next() {
        if word == "-m" {
            if let Some(module) = words.next() {
                return module.clone();
            }
        } else if word == "-c" {
            break;
        } else if ["-W", "-X"].contains(&word.as_str()) {
            let _value = words.next();
        } else if !word.starts_with('-') {
            return last_part(word).to_owned();
        }
    }
    command.first().map_or("python", |first| last_part(first)).to_owned()
}

/// What a process does among those of its service.
fn role(facts: &Facts<'_>) -> &'static str {
    let first = facts.command.first().map_or("", String::as_str);
    let serves =
        first.contains("gunicorn: ") || facts.command.iter().take(3).any(|word| is_server(last_part(word)));
    if first.contains("gunicorn: master") {
        "master"
    } else if first.contains("gunicorn: worker") || serves && facts.is_child {
        "worker"
    } else if serves {
        "master"
    } else if facts.is_child {
        "child"
    } else {
        "python"
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

fn cut(name: &str, most: usize) -> String {
    clean(name).chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn of(command: &[String], environment: &[String], cgroup: &str, tracer: Option<&TracerRow>) -> Identity {
        let facts = Facts { pid: 42, is_child: false, command, environment, cgroup, host: "box", tracer };
        name(&facts, &Given::default()).unwrap()
    }

    #[test]
    fn the_agents_names_go_before_all_others() {
        let tracer = TracerRow {
            source: Source::Agent,
            service: Some("shop|test".to_owned()),
            instance: Some("uuid-child(7)".to_owned()),
            profiler: Some(false),
        };
        let command = words("python app.py");
        let facts = Facts {
            pid: 42,
            is_child: false,
            command: &command,
            environment: &words("SW_AGENT_NAME=other"),
            cgroup: "",
            host: "box",
            tracer: Some(&tracer),
        };
        let given = Given { service: Some("mine".to_owned()), ..Given::default() };
        let named = name(&facts, &given).unwrap();
        assert_eq!((named.service.as_str(), named.instance.as_str()), ("shop|test", "uuid-child(7)"));
        assert_eq!((named.layer.as_str(), named.rule), ("GENERAL", Rule::Agent));
        let named = name(&Facts { tracer: None, ..facts }, &given).unwrap();
        assert_eq!((named.service.as_str(), named.rule), ("mine", Rule::Given));
    }

    #[test]
    fn the_environment_comes_next() {
        let environment =
            words("PATH=/bin OTEL_RESOURCE_ATTRIBUTES=a=b,service.name=pay,service.instance.id=p1");
        let named = of(&words("python app.py"), &environment, "", None);
        assert_eq!((named.service.as_str(), named.instance.as_str()), ("pay", "p1"));
        let named = of(&words("python app.py"), &words("SW_AGENT_NAME= OTEL_SERVICE_NAME=cart"), "", None);
        assert_eq!((named.service.as_str(), named.rule), ("cart", Rule::Environment("OTEL_SERVICE_NAME")));
    }

    #[test]
    fn a_server_is_called_by_its_application() {
        for (line, service, process) in [
            (
                "/usr/bin/python3 /usr/bin/gunicorn -b 0.0.0.0:80 -k gevent shop.wsgi:app",
                "shop.wsgi",
                "master-42",
            ),
            ("/usr/bin/python3 /usr/bin/gunicorn -n shop shop.wsgi:app", "shop", "master-42"),
            ("python -m gunicorn -b localhost:80 shop:app -w 2", "shop", "master-42"),
            ("uwsgi --http :80 --module shop:app --gevent 100", "shop", "master-42"),
            ("uwsgi --wsgi-file /srv/shop.py", "shop.py", "master-42"),
        ] {
            let named = of(&words(line), &[], "", None);
            assert_eq!((named.service.as_str(), named.process.as_str()), (service, process), "{line}");
            assert_eq!(named.rule, Rule::Application);
        }
        let named = of(&["gunicorn: worker [shop]".to_owned()], &[], "", None);
        assert_eq!((named.service.as_str(), named.process.as_str()), ("shop", "worker-42"));
    }

    #[test]
    fn else_the_unit_or_the_command() {
        let unit = of(&words("python app.py"), &[], "0::/system.slice/shop.service\n", None);
        assert_eq!((unit.service.as_str(), unit.rule), ("shop", Rule::Unit));
        for (line, service) in [
            ("python -u -W ignore /srv/app.py --port 80", "app.py"),
            ("python -m shop.server", "shop.server"),
            ("/usr/bin/python3.12 -c pass", "python3.12"),
        ] {
            let session = "0::/user.slice/user-0.slice/user@0.service/app.slice\n";
            let named = of(&words(line), &[], session, None);
            assert_eq!((named.service.as_str(), named.rule), (service, Rule::Command));
            assert_eq!((named.instance.as_str(), named.process.as_str()), ("box", "python-42"));
        }
    }

    #[test]
    fn a_layer_that_oap_does_not_know_is_refused() {
        let command = words("python app.py");
        let facts = Facts {
            pid: 1,
            is_child: true,
            command: &command,
            environment: &[],
            cgroup: "",
            host: "box",
            tracer: None,
        };
        let given = Given { layer: Some("general".to_owned()), ..Given::default() };
        assert!(name(&facts, &given).unwrap_err().to_string().contains("GENERAL"));
    }

    #[test]
    fn names_are_cut_where_oap_cuts_them() {
        let named = of(&words("python app.py"), &[format!("SW_AGENT_NAME={}", "ä".repeat(100))], "", None);
        assert_eq!(named.service, "ä".repeat(70));
    }
}
