//! What a user says about the backend: by flag, by environment, by the names that Rover's users know.
//!
//! Pure: the environment is handed in, and no file is read here.

use std::{fmt, path::PathBuf, time::Duration};

use http::HeaderValue;

use super::queue::DEFAULT_BYTES;

/// The port that OAP listens on.
const DEFAULT_PORT: u16 = 11_800;
/// Addresses that are taken.
const MOST_ADDRESSES: usize = 64;
/// Room on disk by default.
const DEFAULT_SPOOL_BYTES: u64 = 256 << 20;
/// What a queue may be given: room for some batches at least.
const QUEUE_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=4 << 30;
/// The same on disk.
const SPOOL_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

/// A setting by its names: the flag goes before our variable, that before Rover's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Of the command line.
    pub flag: &'static str,
    /// Of the environment.
    pub variable: &'static str,
    /// Rover's, where it has one:
    /// <https://github.com/apache/skywalking-rover/blob/v0.7.0/configs/rover_configs.yaml>
    pub rover: Option<&'static str>,
}

/// The addresses.
pub const ADDRESSES: Setting =
    Setting { flag: "--oap", variable: "GREENSCOPE_OAP_ADDR", rover: Some("ROVER_BACKEND_ADDR") };
/// Whether by TLS.
pub const TLS: Setting =
    Setting { flag: "--oap-tls", variable: "GREENSCOPE_OAP_TLS", rover: Some("ROVER_BACKEND_ENABLE_TLS") };
/// Whose signature is trusted.
pub const CA: Setting =
    Setting { flag: "--oap-ca", variable: "GREENSCOPE_OAP_CA", rover: Some("ROVER_BACKEND_CA_PEM_PATH") };
/// Our certificate.
pub const CERTIFICATE: Setting =
    Setting { flag: "--oap-cert", variable: "GREENSCOPE_OAP_CERT", rover: Some("ROVER_BACKEND_PEM_PATH") };
/// Its key.
pub const KEY: Setting =
    Setting { flag: "--oap-key", variable: "GREENSCOPE_OAP_KEY", rover: Some("ROVER_BACKEND_KEY_PATH") };
/// Whether whoever answers is believed.
pub const INSECURE: Setting = Setting {
    flag: "--oap-insecure-skip-verify",
    variable: "GREENSCOPE_OAP_INSECURE_SKIP_VERIFY",
    rover: Some("ROVER_BACKEND_INSECURE_SKIP_VERIFY"),
};
/// The token.
pub const TOKEN: Setting = Setting {
    flag: "--oap-token",
    variable: "GREENSCOPE_OAP_TOKEN",
    rover: Some("ROVER_BACKEND_AUTHENTICATION"),
};
/// Room in memory.
pub const QUEUE: Setting = Setting { flag: "--oap-queue", variable: "GREENSCOPE_OAP_QUEUE", rover: None };
/// The spool's directory.
pub const SPOOL: Setting = Setting { flag: "--spool", variable: "GREENSCOPE_OAP_SPOOL", rover: None };
/// Its room.
pub const SPOOL_SIZE: Setting =
    Setting { flag: "--spool-size", variable: "GREENSCOPE_OAP_SPOOL_SIZE", rover: None };

/// What the command line says, as it stands there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// Of [`ADDRESSES`].
    pub addresses: Option<String>,
    /// Of [`TLS`].
    pub tls: Option<String>,
    /// Of [`CA`].
    pub ca: Option<String>,
    /// Of [`CERTIFICATE`].
    pub certificate: Option<String>,
    /// Of [`KEY`].
    pub key: Option<String>,
    /// Of [`INSECURE`].
    pub insecure: Option<String>,
    /// Of [`TOKEN`].
    pub token: Option<String>,
    /// Of [`QUEUE`].
    pub queue: Option<String>,
    /// Of [`SPOOL`].
    pub spool: Option<String>,
    /// Of [`SPOOL_SIZE`].
    pub spool_size: Option<String>,
}

/// A setting that can't be used: one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name, or an IP without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// How TLS is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whose signature is trusted; else those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Believe whoever answers.
    pub insecure: bool,
}

/// What `SW_AUTHENTICATION` is on OAP's side; shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub HeaderValue);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection with its TLS.
    pub connect: Duration,
    /// For an answer.
    pub call: Duration,
    /// For the end of an upload: longer than an OAP may stand still, which then has the upload
    /// all the same.
    pub upload: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(10),
            upload: Duration::from_secs(120),
        }
    }
}

/// What is known of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Tried in this order, at least one.
    pub addresses: Vec<Address>,
    /// None: in the clear.
    pub tls: Option<Tls>,
    /// Sent with every call.
    pub token: Option<Token>,
    /// Room in memory for what waits.
    pub queue_bytes: usize,
    /// Where the rest waits.
    pub spool: Option<PathBuf>,
    /// Room there.
    pub spool_bytes: u64,
    /// How long is waited.
    pub deadlines: Deadlines,
}

impl Config {
    /// From what was said; `environment` gives a variable. None: no address is said anywhere, so
    /// there is no backend.
    ///
    /// # Errors
    ///
    /// A value that can't be used.
    pub fn of(
        given: &Given,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        let said = |setting, flag: &Option<String>| Said::of(setting, flag.as_deref(), environment);
        if given.addresses.as_ref().is_some_and(|list| list.trim().is_empty()) {
            return Err(ConfigError(format!(
                "{} is empty: name OAP's address, or leave the flag out to serve none",
                ADDRESSES.flag
            )));
        }
        let Some(list) = said(ADDRESSES, &given.addresses) else {
            return Ok(None);
        };
        let addresses = addresses(&list)?;
        let file = |setting, flag| said(setting, flag).map(|said: Said| PathBuf::from(said.text));
        let (ca, certificate, key) =
            (file(CA, &given.ca), file(CERTIFICATE, &given.certificate), file(KEY, &given.key));
        let own = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(half(CERTIFICATE, KEY)),
            (None, Some(_)) => return Err(half(KEY, CERTIFICATE)),
        };
        let insecure = said(INSECURE, &given.insecure).map(|said| said.yes()).transpose()?.unwrap_or(false);
        // Who names a CA or a certificate wants TLS; who says no to it has none.
        let named = ca.is_some() || own.is_some() || insecure;
        let tls = said(TLS, &given.tls).map(|said| said.yes()).transpose()?.unwrap_or(named);
        if given.spool_size.is_some() && said(SPOOL, &given.spool).is_none() {
            return Err(ConfigError(format!(
                "{} is set and {} is not, so nothing is spooled: give {} DIR too",
                SPOOL_SIZE.flag, SPOOL.flag, SPOOL.flag
            )));
        }
        let bytes = |setting, flag, bounds| said(setting, flag).map(|said| said.bytes(&bounds)).transpose();
        let queue = bytes(QUEUE, &given.queue, QUEUE_BYTES)?;
        Ok(Some(Self {
            addresses,
            tls: tls.then_some(Tls { ca, own, insecure }),
            token: said(TOKEN, &given.token).map(|said| said.token()).transpose()?,
            queue_bytes: queue.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(DEFAULT_BYTES),
            spool: file(SPOOL, &given.spool),
            spool_bytes: bytes(SPOOL_SIZE, &given.spool_size, SPOOL_BYTES)?.unwrap_or(DEFAULT_SPOOL_BYTES),
            deadlines: Deadlines::default(),
        }))
    }

    /// A backend of one address, in the clear.
    #[must_use]
    pub fn plain(address: Address) -> Self {
        Self {
            addresses: vec![address],
            tls: None,
            token: None,
            queue_bytes: DEFAULT_BYTES,
            spool: None,
            spool_bytes: DEFAULT_SPOOL_BYTES,
            deadlines: Deadlines::default(),
        }
    }
}

fn half(there: Setting, missing: Setting) -> ConfigError {
    ConfigError(format!(
        "{} is set and {} is not: a certificate of ours takes both; give {} too",
        there.flag, missing.flag, missing.flag
    ))
}

/// A value, and what it was said by.
struct Said {
    text: String,
    by: &'static str,
}

impl Said {
    /// What is set and empty is not set: manifests are written so.
    fn of(
        setting: Setting,
        flag: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let variable = |by: &'static str| environment(by).map(|text| (text, by));
        [
            flag.map(|text| (text.to_owned(), setting.flag)),
            variable(setting.variable),
            setting.rover.and_then(variable),
        ]
        .into_iter()
        .flatten()
        .map(|(text, by)| Self { text: text.trim().to_owned(), by })
        .find(|said| !said.text.is_empty())
    }

    fn yes(&self) -> Result<bool, ConfigError> {
        match self.text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(self.bad("neither true nor false", "say one of them")),
        }
    }

    fn bytes(&self, bounds: &std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let end = self.text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(self.text.len());
        let (digits, unit) = self.text.split_at(end);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(self.bad("not a number of bytes", "write it like 16MiB")),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        match bytes {
            Some(bytes) if bounds.contains(&bytes) => Ok(bytes),
            _ => Err(self.bad(
                "no size that can be used",
                &format!("choose one from {}KiB to {}MiB", bounds.start() >> 10, bounds.end() >> 20),
            )),
        }
    }

    /// The text is not in the error: logs are read by many.
    fn token(&self) -> Result<Token, ConfigError> {
        let mut value = self
            .text
            .bytes()
            .all(|byte| (0x20..0x7f).contains(&byte))
            .then(|| HeaderValue::from_str(&self.text).ok())
            .flatten()
            .ok_or_else(|| {
                ConfigError(format!(
                    "{} holds characters that gRPC can't carry: a token is printable ASCII; set the \
                     one that OAP has as SW_AUTHENTICATION",
                    self.by
                ))
            })?;
        value.set_sensitive(true);
        Ok(Token(value))
    }

    fn bad(&self, why: &str, what: &str) -> ConfigError {
        ConfigError(format!("{} {:?} is {why}; {what}", self.by, short(&self.text)))
    }
}

/// What of a wrong value is repeated.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn addresses(list: &Said) -> Result<Vec<Address>, ConfigError> {
    let mut addresses = Vec::new();
    for text in list.text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let address = address(text).map_err(|(why, what)| {
            let one = Said { text: text.to_owned(), by: list.by };
            one.bad(why, what)
        })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(list.bad("no address", "write it like oap:11800"));
    }
    if addresses.len() > MOST_ADDRESSES {
        return Err(list.bad("too long a list", &format!("name at most {MOST_ADDRESSES} addresses")));
    }
    Ok(addresses)
}

type Bad = (&'static str, &'static str);

fn address(text: &str) -> Result<Address, Bad> {
    const LIKE: &str = "write it like oap:11800";
    if text.contains("://") {
        return Err(("an URL, where a host and a port are meant", "leave the scheme out; TLS is --oap-tls"));
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return Err(("no address", "close the bracket: [::1]:11800"));
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(("no IPv6 address", "write it like [::1]:11800"));
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(("no address", "write it like [::1]:11800")),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(("an IPv6 address without brackets", "write it like [::1]:11800"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._:".contains(letter);
    if host.is_empty() || host.len() > 253 || !host.chars().all(plain) {
        return Err(("no host's name", LIKE));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(("without a port's number", LIKE))?,
    };
    Ok(Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn config(given: &Given, environment: &[(&str, &str)]) -> Result<Option<Config>, String> {
        let environment: HashMap<&str, &str> = environment.iter().copied().collect();
        Config::of(given, &|name| environment.get(name).map(|text| (*text).to_owned()))
            .map_err(|error| error.to_string())
    }

    fn by_environment(environment: &[(&str, &str)]) -> Result<Config, String> {
        config(&Given::default(), environment).map(Option::unwrap)
    }

    fn at(addresses: &str) -> Result<Vec<String>, String> {
        let config = by_environment(&[("GREENSCOPE_OAP_ADDR", addresses)])?;
        Ok(config.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_a_list() {
        assert_eq!(at("oap").unwrap(), ["oap:11800"]);
        assert_eq!(
            at(" a.b-c:1 ,, [::1], 10.0.0.1:65535,[fe80::1]:9,a.b-c:1").unwrap(),
            ["a.b-c:1", "[::1]:11800", "10.0.0.1:65535", "[fe80::1]:9"]
        );
        for (text, says) in [
            ("http://oap:11800", "URL"),
            ("::1", "brackets"),
            ("oap:0", "port"),
            ("oap:70000", "port"),
            ("oap:", "port"),
            (":11800", "host's name"),
            ("a b", "host's name"),
            ("[::1", "bracket"),
            ("[oap]:1", "IPv6"),
            ("[::1]1", "address"),
            (",", "no address"),
        ] {
            let error = at(text).unwrap_err();
            assert!(error.contains(says) && error.starts_with("GREENSCOPE_OAP_ADDR"), "{text}: {error}");
            assert!(!error.contains('\n'));
        }
        let many: Vec<String> = (0..65).map(|n| format!("h{n}")).collect();
        assert!(at(&many.join(",")).unwrap_err().contains("at most 64"));
    }

    #[test]
    fn a_flag_goes_before_our_variable_and_that_before_rovers() {
        assert_eq!(config(&Given::default(), &[]), Ok(None));
        let spool = Given { spool: Some("/spool".to_owned()), ..Given::default() };
        assert_eq!(config(&spool, &[]), Ok(None));
        let mut environment = vec![("ROVER_BACKEND_ADDR", "rover")];
        let host = |given: &Given, environment: &[(&str, &str)]| {
            config(given, environment).unwrap().unwrap().addresses[0].host.clone()
        };
        let mut given = Given::default();
        assert_eq!(host(&given, &environment), "rover");
        environment.push(("GREENSCOPE_OAP_ADDR", ""));
        assert_eq!(host(&given, &environment), "rover");
        environment.insert(0, ("GREENSCOPE_OAP_ADDR", "ours"));
        environment.pop();
        assert_eq!(host(&given, &environment), "ours");
        given.addresses = Some("flag".to_owned());
        assert_eq!(host(&given, &environment), "flag");
    }

    #[test]
    fn rovers_names_are_known() {
        let config = by_environment(&[
            ("ROVER_BACKEND_ADDR", "oap:1"),
            ("ROVER_BACKEND_ENABLE_TLS", "true"),
            ("ROVER_BACKEND_PEM_PATH", "/c"),
            ("ROVER_BACKEND_KEY_PATH", "/k"),
            ("ROVER_BACKEND_CA_PEM_PATH", "/ca"),
            ("ROVER_BACKEND_INSECURE_SKIP_VERIFY", "false"),
            ("ROVER_BACKEND_AUTHENTICATION", "secret\n"),
        ])
        .unwrap();
        let own = Some(("/c".into(), "/k".into()));
        assert_eq!(config.tls, Some(Tls { ca: Some("/ca".into()), own, insecure: false }));
        assert_eq!(config.token.as_ref().unwrap().0, "secret");
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn who_names_a_ca_wants_tls() {
        let with = |more: &[(&str, &str)]| {
            let mut all = vec![("GREENSCOPE_OAP_ADDR", "oap")];
            all.extend_from_slice(more);
            by_environment(&all)
        };
        assert_eq!(with(&[]).unwrap().tls, None);
        assert!(with(&[("GREENSCOPE_OAP_CA", "/ca")]).unwrap().tls.is_some());
        assert!(with(&[("GREENSCOPE_OAP_INSECURE_SKIP_VERIFY", "1")]).unwrap().tls.unwrap().insecure);
        assert_eq!(with(&[("GREENSCOPE_OAP_CA", "/ca"), ("GREENSCOPE_OAP_TLS", "no")]).unwrap().tls, None);
        assert!(with(&[("GREENSCOPE_OAP_CERT", "/c")]).unwrap_err().contains("give --oap-key too"));
        assert!(with(&[("GREENSCOPE_OAP_KEY", "/k")]).unwrap_err().contains("give --oap-cert too"));
        let error = with(&[("GREENSCOPE_OAP_TLS", "maybe")]).unwrap_err();
        assert_eq!(error, "GREENSCOPE_OAP_TLS \"maybe\" is neither true nor false; say one of them");
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        let queue = |text: &str| {
            by_environment(&[("GREENSCOPE_OAP_ADDR", "oap"), ("GREENSCOPE_OAP_QUEUE", text)])
                .map(|config| config.queue_bytes)
        };
        assert_eq!(queue(""), Ok(16 << 20));
        assert_eq!(queue("1MiB"), Ok(1 << 20));
        assert_eq!(queue("70000"), Ok(70_000));
        assert_eq!(queue("2 g"), Ok(2 << 30));
        for text in ["1", "5G", "-1", "16 potatoes", "99999999999999999999", "MiB"] {
            assert!(queue(text).unwrap_err().starts_with("GREENSCOPE_OAP_QUEUE"), "{text}");
        }
    }

    #[test]
    fn a_flag_without_effect_is_refused() {
        let empty = Given { addresses: Some(" ".to_owned()), ..Given::default() };
        assert!(config(&empty, &[("GREENSCOPE_OAP_ADDR", "oap")]).unwrap_err().starts_with("--oap is empty"));
        let size = Given { spool_size: Some("1MiB".to_owned()), ..Given::default() };
        let oap = ("GREENSCOPE_OAP_ADDR", "oap");
        assert!(config(&size, &[oap]).unwrap_err().contains("give --spool DIR too"));
        assert_eq!(
            config(&size, &[oap, ("GREENSCOPE_OAP_SPOOL", "d")]).unwrap().unwrap().spool_bytes,
            1 << 20
        );
    }

    #[test]
    fn a_token_that_cannot_be_sent_is_refused_and_not_told() {
        let error = by_environment(&[("GREENSCOPE_OAP_ADDR", "oap"), ("GREENSCOPE_OAP_TOKEN", "gehéim")])
            .unwrap_err();
        assert!(error.contains("printable ASCII") && !error.contains("geh"), "{error}");
    }
}
