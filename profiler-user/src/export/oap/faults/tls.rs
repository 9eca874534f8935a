//! TLS: of our CA and of others, expired, of another name, from both sides.

use super::{
    super::config::{Address, Config, Tls},
    Fate, Kind, ask, backend, check,
    pki::{Ca, Signed},
    run,
    server::{Does, Server},
};

async fn behind(signed: &Signed, clients: Option<&Ca>) -> Server {
    Server::with_tls(Does::Answer, Some(signed.server(clients))).await
}

fn trusting(server: &Server, tls: Tls) -> Config {
    Config { tls: Some(tls), ..server.config() }
}

#[test]
fn a_ca_of_our_own_is_trusted_and_a_foreign_one_is_not() {
    run(async {
        let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new("ours"));
        let ours = Tls { ca: Some(ca.file(folder.path())), ..Tls::default() };
        let server = behind(&ca.sign("127.0.0.1"), None).await;
        ask(&backend(trusting(&server, ours.clone()))).await.unwrap();

        let foreign = behind(&Ca::new("foreign").sign("127.0.0.1"), None).await;
        let refused = ask(&backend(trusting(&foreign, ours))).await.unwrap_err();
        check(&refused, Fate::Retry, Kind::Tls, "not trusted here: name the CA that signed it by --oap-ca");
        // Whoever is believed by order.
        let anybody = Tls { insecure: true, ..Tls::default() };
        ask(&backend(trusting(&foreign, anybody))).await.unwrap();
    });
}

#[test]
fn an_expired_certificate_and_one_of_another_name_are_named() {
    run(async {
        let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new("ours"));
        let ours = Tls { ca: Some(ca.file(folder.path())), ..Tls::default() };
        let expired = behind(&ca.until("127.0.0.1", 2020), None).await;
        let refused = ask(&backend(trusting(&expired, ours.clone()))).await.unwrap_err();
        check(&refused, Fate::Retry, Kind::Tls, "expired");

        let other = behind(&ca.sign("oap.example"), None).await;
        let refused = ask(&backend(trusting(&other, ours.clone()))).await.unwrap_err();
        check(&refused, Fate::Retry, Kind::Tls, "not for the name \"127.0.0.1\"");
        assert!(refused.text.contains("oap.example"), "{refused}");

        // By its name it is the right one.
        let local = behind(&ca.sign("localhost"), None).await;
        let mut config = trusting(&local, ours);
        config.addresses = vec![Address { host: "localhost".to_owned(), port: local.address.port }];
        ask(&backend(config)).await.unwrap();
    });
}

#[test]
fn both_sides_show_certificates() {
    run(async {
        let (folder, ca, foreign) = (tempfile::tempdir().unwrap(), Ca::new("ours"), Ca::new("foreign"));
        let server = behind(&ca.sign("127.0.0.1"), Some(&ca)).await;
        let file = Some(ca.file(folder.path()));
        let own = Some(ca.sign("greenscope").files(folder.path()));
        ask(&backend(trusting(&server, Tls { ca: file.clone(), own, insecure: false }))).await.unwrap();

        let none = ask(&backend(trusting(&server, Tls { ca: file.clone(), ..Tls::default() }))).await;
        check(&none.unwrap_err(), Fate::Retry, Kind::Tls, "--oap-cert and --oap-key");

        let folder = tempfile::tempdir().unwrap();
        let own = Some(foreign.sign("greenscope").files(folder.path()));
        let refused = ask(&backend(trusting(&server, Tls { ca: file, own, insecure: false }))).await;
        check(&refused.unwrap_err(), Fate::Retry, Kind::Tls, "refuses our side of TLS");
    });
}

#[test]
fn renewed_files_are_read_with_the_next_connection() {
    run(async {
        let (folder, first, second) = (tempfile::tempdir().unwrap(), Ca::new("first"), Ca::new("second"));
        let ours = Tls { ca: Some(first.file(folder.path())), ..Tls::default() };
        let server = behind(&second.sign("127.0.0.1"), None).await;
        let backend = backend(trusting(&server, ours));
        check(&ask(&backend).await.unwrap_err(), Fate::Retry, Kind::Tls, "not trusted");
        let _same = second.file(folder.path());
        backend.paused().await;
        ask(&backend).await.unwrap();
    });
}

#[test]
fn tls_where_there_is_none_and_none_where_there_is() {
    run(async {
        let plain = Server::that(Does::Answer).await;
        let tls = Tls { insecure: true, ..Tls::default() };
        let refused = ask(&backend(trusting(&plain, tls.clone()))).await.unwrap_err();
        check(&refused, Fate::Retry, Kind::Tls, &plain.address.to_string());

        let signed = Ca::new("ours").sign("127.0.0.1");
        let server = behind(&signed, None).await;
        let refused = ask(&backend(server.config())).await.unwrap_err();
        assert_eq!(refused.fate, Fate::Retry, "{refused}");
        assert!(refused.text.contains("--oap-tls"), "{refused}");

        let mut web = signed.server(None);
        web.alpn_protocols = vec![b"http/1.1".to_vec()];
        let web = Server::with_tls(Does::Answer, Some(web)).await;
        let refused = ask(&backend(trusting(&web, tls))).await.unwrap_err();
        check(&refused, Fate::Retry, Kind::Tls, "not HTTP/2");
    });
}
