//! Certificates: chosen by name, exchanged while connections are open, and on the admin listener too.

use crate::support::{
    Running, Setup,
    authority::{Authority, Issued},
    client::{Client, Request},
};
use rustls::pki_types::CertificateDer;
use sluicegate::call::Surface;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TWO: &str = "[{ address: \"127.0.0.1:0\", tls: { certificates: [{ certificate: a.pem, key: a.key }, \
                   { certificate: b.pem, key: b.key }] } }]";
const ADMIN: &str = "admin: { address: \"127.0.0.1:0\", tls: { certificates: [{ certificate: a.pem, key: a.key }], \
                     clients: { ca: ca.pem, certificate: optional } } }";

async fn start() -> (Running, Arc<Authority>, [Issued; 2]) {
    let authority = Arc::new(Authority::new());
    let setup = Setup::new().listen(TWO).yaml(ADMIN);
    let issued = [authority.server(&["localhost", "a.example"]), authority.server(&["b.example"])];
    issued[0].write(setup.folder(), "a");
    issued[1].write(setup.folder(), "b");
    authority.write(&setup.folder().join("ca.pem"));
    (setup.start().await, authority, issued)
}

async fn shown(running: &Running, authority: &Authority, name: &str) -> CertificateDer<'static> {
    let stream = authority.connect(running.address, name, None).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let (running, authority, issued) = start().await;
    assert_eq!(shown(&running, &authority, "a.example").await, issued[0].certificate);
    assert_eq!(shown(&running, &authority, "b.example").await, issued[1].certificate);
    // The first is for everyone else, who may find that it is not for them.
    assert!(authority.connect(running.address, "c.example", None).await.is_err());
}

#[tokio::test]
async fn every_surface_speaks_tls() {
    let (running, authority, _) = start().await;
    let running = running.through(authority.tunnel(running.address, None).await);
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        client.infer(&Request::new("double", &[1, 4], vec![1.0; 4])).await.unwrap();
    }
}

async fn get(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_admin_listener_speaks_tls_too() {
    let (running, authority, _) = start().await;
    let mut stream = authority.connect(running.admin, "localhost", None).await.unwrap();
    assert!(get(&mut stream, "/livez").await.starts_with("HTTP/1.1 200"));
    let mut plain = tokio::net::TcpStream::connect(running.admin).await.unwrap();
    assert!(!get(&mut plain, "/livez").await.contains("200"));
}

#[tokio::test]
async fn certificates_are_exchanged_and_no_connection_is_dropped() {
    let (running, authority, _) = start().await;
    let through = running.through(authority.tunnel(running.address, None).await);
    let request = Request::new("double", &[1, 4], vec![1.0; 4]);
    let mut open = Vec::new();
    for surface in [Surface::Grpc, Surface::WebSocket] {
        open.push(Client::connect(surface, &through, None).await.unwrap());
    }
    for round in 0..2 {
        let next = authority.server(&["localhost", "a.example"]);
        next.write(running.folder(), "a");
        let written = Instant::now();
        while shown(&running, &authority, "a.example").await != next.certificate {
            assert!(written.elapsed() < Duration::from_secs(5), "round {round}");
            for client in &mut open {
                client.infer(&request).await.unwrap();
            }
        }
        // On the admin listener by the same files.
        let admin = authority.connect(running.admin, "localhost", None).await.unwrap();
        assert_eq!(admin.get_ref().1.peer_certificates().unwrap()[0], next.certificate);
    }
    // What is broken changes nothing but the gauge.
    std::fs::write(running.folder().join("a.key"), "nonsense").unwrap();
    let admin = running.admin_through(authority.tunnel(running.admin, None).await);
    admin.until("the broken key was noticed", |page| page.contains("sluicegate_config_reload_success 0")).await;
    shown(&running, &authority, "a.example").await;
    for client in &mut open {
        client.infer(&request).await.unwrap();
    }
}
