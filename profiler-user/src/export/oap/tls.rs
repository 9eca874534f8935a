//! TLS to the backend: the files that it takes, and what its errors mean.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject as _},
};

use super::config::{CA, CERTIFICATE, ConfigError, KEY, Tls};

/// Reads the files. It is done again for every connection, so renewed certificates are taken
/// without a restart.
///
/// # Errors
///
/// What can't be read, or is no PEM.
pub fn client(tls: &Tls) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError(format!("TLS can't be used: {error}")))?;
    let builder = if tls.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let roots = Arc::new(roots(tls.ca.as_deref())?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(|error| {
                ConfigError(format!("no CA can be trusted: {error}; name one by {}", CA.flag))
            })?;
        builder.with_webpki_verifier(verifier)
    };
    let mut config = match &tls.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(CERTIFICATE.flag, certificate)?, private_key(key)?)
            .map_err(|error| {
                ConfigError(format!(
                    "{} and {} can't be used together: {error}; give a certificate with its own key",
                    CERTIFICATE.flag, KEY.flag
                ))
            })?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(CA.flag, path)? {
                roots.add(certificate).map_err(|error| {
                    ConfigError(format!(
                        "{} {} holds a certificate that can't be used: {error}; name the CA's own",
                        CA.flag,
                        path.display()
                    ))
                })?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (taken, _) = roots.add_parsable_certificates(found.certs);
            if taken == 0 {
                return Err(ConfigError(format!(
                    "this system trusts no CA (no certificates under /etc/ssl): name OAP's by {}",
                    CA.flag
                )));
            }
        }
    }
    Ok(roots)
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => {
            Err(unreadable(flag, path, "a certificate", &pem::Error::NoItemsFound))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(flag, path, "a certificate", &error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| unreadable(KEY.flag, path, "a private key without a passphrase", &error))
}

fn unreadable(flag: &str, path: &Path, what: &str, error: &pem::Error) -> ConfigError {
    let path = path.display();
    ConfigError(match error {
        pem::Error::Io(error) => format!("{flag} {path} can't be read: {error}; name a PEM file with {what}"),
        _ => format!("{flag} {path} holds no PEM of {what}; name a file that does"),
    })
}

/// What an error of the handshake means, and what to do: it follows the address.
#[must_use]
pub fn meaning(error: &Error, host: &str) -> String {
    match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "has a certificate that is expired (or this clock is wrong): renew OAP's".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "has a certificate that is not valid yet: set this machine's clock, or renew OAP's".to_owned()
            }
            CertificateError::UnknownIssuer => format!(
                "has a certificate of a CA that is not trusted here: name the CA that signed it by {}",
                CA.flag
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let names = match why {
                    CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                        format!(" but for {}", presented.join(", "))
                    }
                    _ => String::new(),
                };
                format!(
                    "has a certificate that is not for the name {host:?}{names}: connect by a name that it has"
                )
            }
            // A CA's own certificate, given out as a server's.
            why => format!("has a certificate that can't be used ({why}): make OAP another"),
        },
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "speaks TLS, but not HTTP/2 in it: is it a web server? Name OAP's gRPC port".to_owned()
        }
        Error::AlertReceived(alert) => format!("refuses our TLS ({alert:?}): look at what it wants"),
        Error::InvalidMessage(_) => {
            "answers without TLS: leave --oap-tls out, or name its TLS port".to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "speaks TLS older than 1.2: renew it".to_owned(),
        error => format!("can't agree with us on TLS ({error})"),
    }
}

/// Believes whoever answers: what was asked for by `--oap-insecure-skip-verify`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let none = folder.path().join("none");
        let text = path("text", "hello");
        let torn = path("torn", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        let empty_body = path("odd", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let says = |tls: &Tls| client(tls).unwrap_err().to_string();
        for (ca, expected) in [
            (&none, "can't be read: No such file"),
            (&text, "holds no PEM of a certificate"),
            (&torn, "holds no PEM of a certificate"),
            (&empty_body, "can't be used"),
        ] {
            let error = says(&Tls { ca: Some(ca.clone()), ..Tls::default() });
            assert!(error.starts_with("--oap-ca /") && error.contains(expected), "{error}");
        }
        let made = rcgen::generate_simple_self_signed(["oap".to_owned()]).unwrap();
        let certificate = path("cert", &made.cert.pem());
        let key = path("key", &made.signing_key.serialize_pem());
        let other = path("other", &rcgen::KeyPair::generate().unwrap().serialize_pem());
        let own = |certificate: &Path, key: &Path| Tls {
            insecure: true,
            own: Some((certificate.to_owned(), key.to_owned())),
            ..Tls::default()
        };
        assert!(says(&own(&certificate, &certificate)).starts_with("--oap-key /"));
        assert!(says(&own(&key, &key)).starts_with("--oap-cert /"));
        assert!(says(&own(&certificate, &other)).contains("can't be used together"));
        assert!(client(&own(&certificate, &key)).is_ok());
    }
}
