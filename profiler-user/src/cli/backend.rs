//! What the command line says about the backend.

use std::env;

use clap::Args;

use super::Failure;
use crate::export::oap::config::{
    CA, CERTIFICATE, Config, ConfigError, Given, INSECURE, KEY, QUEUE, SPOOL, SPOOL_SIZE, TLS, TOKEN,
};

/// The backend's settings. They are read as text, for the environment's two names of each are
/// read the same way, and by one piece of code.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "SkyWalking's OAP")]
pub(super) struct Backend {
    /// Its addresses, comma separated; the port is 11800 if none is named [env: GREENSCOPE_OAP_ADDR]
    #[arg(long, value_name = "HOST[:PORT],…")]
    oap: Option<String>,
    /// Connect by TLS [env: GREENSCOPE_OAP_TLS]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oap_tls: Option<String>,
    /// Whose signature is trusted, PEM; turns TLS on [default: those of the system] [env: GREENSCOPE_OAP_CA]
    #[arg(long, value_name = "FILE")]
    oap_ca: Option<String>,
    /// A certificate of ours for mutual TLS, PEM [env: GREENSCOPE_OAP_CERT]
    #[arg(long, value_name = "FILE")]
    oap_cert: Option<String>,
    /// Its key, PEM [env: GREENSCOPE_OAP_KEY]
    #[arg(long, value_name = "FILE")]
    oap_key: Option<String>,
    /// Believe whoever answers by TLS [env: GREENSCOPE_OAP_INSECURE_SKIP_VERIFY]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oap_insecure_skip_verify: Option<String>,
    /// What OAP has as SW_AUTHENTICATION; others see it in ps, so better by the environment [env: GREENSCOPE_OAP_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    oap_token: Option<String>,
    /// Room in memory for what waits to be sent [default: 16MiB] [env: GREENSCOPE_OAP_QUEUE]
    #[arg(long, value_name = "SIZE")]
    oap_queue: Option<String>,
    /// Where what has no room in memory waits [env: GREENSCOPE_OAP_SPOOL]
    #[arg(long, value_name = "DIR")]
    spool: Option<String>,
    /// Room there [default: 256MiB] [env: GREENSCOPE_OAP_SPOOL_SIZE]
    #[arg(long, value_name = "SIZE")]
    spool_size: Option<String>,
}

/// The token is not shown.
impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("oap", &self.oap).finish_non_exhaustive()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl Backend {
    /// With the environment; None: no backend is named.
    pub(super) fn config(&self) -> Result<Option<Config>, Failure> {
        let environment = |name: &str| env::var_os(name).map(|text| text.to_string_lossy().into_owned());
        Ok(Config::of(&self.given(), &environment)?)
    }

    /// The flags that say something of a backend, and whether they are given.
    pub(super) const fn flags(&self) -> [(&'static str, bool); 9] {
        [
            (TLS.flag, self.oap_tls.is_some()),
            (CA.flag, self.oap_ca.is_some()),
            (CERTIFICATE.flag, self.oap_cert.is_some()),
            (KEY.flag, self.oap_key.is_some()),
            (INSECURE.flag, self.oap_insecure_skip_verify.is_some()),
            (TOKEN.flag, self.oap_token.is_some()),
            (QUEUE.flag, self.oap_queue.is_some()),
            (SPOOL.flag, self.spool.is_some()),
            (SPOOL_SIZE.flag, self.spool_size.is_some()),
        ]
    }

    fn given(&self) -> Given {
        let this = self.clone();
        Given {
            addresses: this.oap,
            tls: this.oap_tls,
            ca: this.oap_ca,
            certificate: this.oap_cert,
            key: this.oap_key,
            insecure: this.oap_insecure_skip_verify,
            token: this.oap_token,
            queue: this.oap_queue,
            spool: this.spool,
            spool_size: this.spool_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::export::oap::config::ADDRESSES;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        backend: Backend,
    }

    #[test]
    fn each_flag_is_the_setting_that_it_is_called_in_errors() {
        let parsed = |words: &[&str]| Line::try_parse_from([&["x"], words].concat()).unwrap().backend.given();
        let of = |flag: &str| parsed(&[&format!("{flag}=v")]);
        let v = || Some("v".to_owned());
        assert_eq!(of(ADDRESSES.flag).addresses, v());
        assert_eq!(of(TLS.flag).tls, v());
        assert_eq!(of(CA.flag).ca, v());
        assert_eq!(of(CERTIFICATE.flag).certificate, v());
        assert_eq!(of(KEY.flag).key, v());
        assert_eq!(of(INSECURE.flag).insecure, v());
        assert_eq!(of(TOKEN.flag).token, v());
        assert_eq!(of(QUEUE.flag).queue, v());
        assert_eq!(of(SPOOL.flag).spool, v());
        assert_eq!(of(SPOOL_SIZE.flag).spool_size, v());
        assert_eq!(parsed(&["--oap-tls", "--oap", "h"]).tls.as_deref(), Some("true"));
    }

    #[test]
    fn the_help_names_every_variable() {
        use clap::CommandFactory as _;
        let help = Line::command().render_long_help().to_string();
        for setting in [ADDRESSES, TLS, CA, CERTIFICATE, KEY, INSECURE, TOKEN, QUEUE, SPOOL, SPOOL_SIZE] {
            assert!(help.contains(setting.variable), "{}", setting.variable);
        }
    }
}
