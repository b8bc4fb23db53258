//! What the log says of a Redis that is not there, or is none, when the gateway starts.

use super::*;
use std::{
    io,
    sync::{Mutex, PoisonError},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tracing_subscriber::fmt::MakeWriter;

const PASSWORD: &str = "open-sesame";

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Page {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn count(&self, what: &str) -> usize {
        self.text().lines().filter(|line| line.contains(what)).count()
    }
}

/// Answers each command with `answer`; one command begins with each line that has a star.
async fn answer(stream: TcpStream, answer: &'static str) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.starts_with('*') && write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Serves everybody for ever.
fn serve(listener: TcpListener, with: &'static str) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, with));
        }
    })
}

/// What is logged of a server that answers so, or of none: at first, and until it has come, or come to its senses.
async fn logged(first: Option<&'static str>) -> (Page, Page) {
    let page = Page::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(page.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = match first {
        Some(answer) => Some(serve(listener, answer)),
        None => {
            drop(listener);
            None
        }
    };
    let url = Secret(format!("redis://:{PASSWORD}@{address}").into());
    let settings = Settings { url, trust: Trust::System, when_away: WhenAway::Refuse, lease: Duration::from_secs(10) };
    let (shared, link) = Shared::new(&settings, Instant::now()).unwrap();
    let mut presence = link.presence();
    tokio::spawn(link.serve());
    // Long enough for several attempts.
    while page.count("still away") < 2 {
        sleep(Duration::from_millis(10)).await;
    }
    let away = Page(Arc::new(Mutex::new(page.text().into_bytes())));
    if let Some(server) = server {
        server.abort();
        let _ = server.await;
    }
    let listener = TcpListener::bind(address).await.unwrap();
    serve(listener, "+OK\r\n");
    timeout(Duration::from_secs(20), presence.wait_for(|present| *present)).await.unwrap().unwrap();
    drop(shared);
    (away, page)
}

#[tokio::test]
async fn one_that_is_not_there_at_the_start_is_told_once_and_its_coming_too() {
    let garbage = "HTTP/1.1 400 Bad Request\r\n";
    let refusal = "-WRONGPASS invalid username-password pair: open-sesame\r\n";
    for first in [None, Some(refusal), Some(garbage)] {
        let (away, all) = timeout(Duration::from_secs(60), logged(first)).await.unwrap();
        assert_eq!((away.count("WARN"), away.count("INFO")), (1, 0), "{first:?}: {}", away.text());
        assert_eq!(away.count("Redis is away"), 1);
        assert_eq!((all.count("WARN"), all.count("Redis is there")), (1, 1), "{first:?}: {}", all.text());
        assert!(!all.text().contains(PASSWORD), "{}", all.text());
    }
}

/// Does all that it is asked but to run scripts of more than a line.
async fn unwilling(stream: TcpStream) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    // Commands are lists of texts, each behind a line with its length.
    while let Ok(Some(line)) = lines.next_line().await {
        if !line.starts_with('*') {
            continue;
        }
        lines.next_line().await.unwrap();
        let mut answer = "+OK\r\n";
        if lines.next_line().await.unwrap().as_deref() == Some("EVAL") {
            lines.next_line().await.unwrap();
            if lines.next_line().await.unwrap().as_deref() != Some("return 1") {
                answer = "-NOPERM this user has no permissions\r\n";
            }
        }
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn one_that_refuses_what_it_is_asked_is_told_once_and_not_each_time_that_it_is_connected_to() {
    let page = Page::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(page.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Secret(format!("redis://{}", listener.local_addr().unwrap()).into());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(unwilling(stream));
        }
    });
    let settings = Settings { url, trust: Trust::System, when_away: WhenAway::Refuse, lease: Duration::from_secs(10) };
    let (shared, link) = Shared::new(&settings, Instant::now()).unwrap();
    let presence = link.presence();
    tokio::spawn(link.serve());
    let lease = Arc::new(Lease::new("key".into()));
    let rate = Rate::new(10.try_into().unwrap(), Duration::from_secs(1), 10.try_into().unwrap());
    let draw = Draw { need: 1, want: 1, ..Draw::default() };
    timeout(Duration::from_secs(20), async {
        while page.count("still away") < 3 {
            if shared.is_present() {
                shared.send(&lease, rate, draw);
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!((page.count("Redis is there"), page.count("WARN")), (1, 1), "{}", page.text());
    assert!(page.text().contains("NOPERM"), "{}", page.text());
    assert!(!*presence.borrow(), "nobody is told that it is there");
}

#[test]
fn an_address_says_what_is_wrong_with_it_and_never_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, rcgen::generate_simple_self_signed(Vec::new()).unwrap().cert.pem()).unwrap();
    let only = || Trust::Only(ca.clone());
    let address = |url: &str, trust: Trust| {
        let settings =
            Settings { url: Secret(url.into()), trust, when_away: WhenAway::Refuse, lease: Duration::from_secs(10) };
        Address::new(&settings).map(drop)
    };
    for url in ["redis://:open-sesame@h:1/2", "rediss://:open-sesame@h", "valkeys://[::1]:7", "rediss://1.2.3.4:5"] {
        assert_eq!(address(url, Trust::System), Ok(()), "{url}");
    }
    assert_eq!(address("rediss://h", only()), Ok(()));
    for (url, trust) in [
        ("redis://:open-sesame@h", only()),
        ("rediss://:open-sesame@h#insecure", Trust::System),
        ("rediss://:open-sesame@h", Trust::Only(folder.path().join("none.pem"))),
        ("rediss://:open-sesame@h:port", Trust::System),
        ("https://:open-sesame@h", Trust::System),
        ("rediss://", Trust::System),
    ] {
        let problem = address(url, trust).unwrap_err();
        assert!(!problem.is_empty() && !problem.contains(PASSWORD), "{problem}");
    }
}
