//! Eight attacks on a registry at the same time. Each is cheap for those who make it: slow bytes,
//! idle connections, and requests that are given up.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_testkit::{
    Fault, Image, ImageBuilder, Upstream,
    faults::Kind,
    hostile::{bomb::Bomb, http2},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    sync::oneshot,
};
use tokio_rustls::{TlsConnector, rustls};

use crate::http::{Io, Target};

/// Bombs that are copied one after the other.
const BOMBS: usize = 12;
/// Blobs that one upstream sends slowly: as many as copies of one host run at once.
pub(super) const SLOW_BLOBS: usize = 8;
/// How fast.
const SLOW: Kind = Kind::Slow {
    bytes_per_second: 2000,
};
/// Bytes of a slow blob of a stranger's own.
const SLOW_BYTES: usize = 256 << 10;

/// Attackers come from `127.0.0.LAST`, each of these four.
const ADDRESSES: [u8; 4] = [20, 21, 22, 23];
/// Idle connections of each: as many as one address may have.
const IDLE: usize = 1024;
/// Connections to the admin port of each.
const ADMIN: usize = 64;
/// Wrong logins at once.
const LOGINS: usize = 300;
/// Connections whose streams are never read, and streams of each.
const UNREAD: usize = 8;
const STREAMS: u32 = 128;

/// What is attacked.
pub(super) struct Victim {
    /// The registry.
    pub(super) target: Target,
    /// Its probes and metrics.
    pub(super) admin: SocketAddr,
    /// Paths of a large blob, of a long list of tags, and of the images of the healthy upstream.
    pub(super) blob: String,
    pub(super) list: String,
    pub(super) healthy: String,
}

/// How often each attack was made; the order is that of [`NAMES`].
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Arc<[AtomicU64; 8]>);

/// The attacks, and what is counted of each.
pub(super) const NAMES: [(&str, &str); 8] = [
    (
        "bomb",
        "copies of an index of indexes of 64 manifests of 4 MiB",
    ),
    (
        "h2mem",
        "connections of 128 streams each that ask for a large blob or a long list and read nothing",
    ),
    ("tasks", "pulls of a growing blob, given up"),
    (
        "slots",
        "idle connections of four addresses, those included that were closed and opened again",
    ),
    (
        "admin",
        "connections to the admin port that send a byte now and then",
    ),
    ("login", "wrong logins that were answered"),
    (
        "pace",
        "pulls of tags that the healthy upstream does not have, given up",
    ),
    (
        "trickle",
        "slow uploads, and pulls of blobs that two upstreams send slowly",
    ),
];

/// What is made of each in a round at least. With less the machine is too busy for the
/// figures to mean anything.
pub(super) const FEWEST: [u64; 8] = [5, 8, 100, 4096, 256, 1000, 500, 48];

impl Counts {
    fn add(&self, attack: usize) {
        self.0[attack].fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers so far.
    pub(super) fn get(&self) -> [u64; 8] {
        std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed))
    }
}

/// Hosts of the hostile upstreams: the bomb's, then two slow ones.
pub(super) type Hosts = [String; 3];

/// Serves the hostile upstreams, and attacks when the victim is known. `images` are images of the
/// healthy upstream whose layers the first slow one has, too.
pub(super) async fn run(
    images: Vec<Image>,
    counts: Counts,
    tell: mpsc::Sender<Hosts>,
    begin: oneshot::Receiver<Victim>,
) -> Result<()> {
    let mut bomb = Bomb::default();
    (0..BOMBS).for_each(|_| bomb.push(2));
    let (bombs, _) = bomb.serve().await?;
    let slow = [Upstream::start().await, Upstream::start().await];
    for upstream in &slow {
        upstream.faults().set(Fault::new(SLOW).on("/blobs/"));
    }
    for (number, image) in images.iter().enumerate() {
        slow[0].push("x/fill", &number.to_string(), image);
    }
    let own: Vec<Image> = (0..SLOW_BLOBS as u64)
        .map(|number| {
            let builder = ImageBuilder::new(700 + number);
            builder.layer(SLOW_BYTES).build()
        })
        .collect();
    for (number, image) in own.iter().enumerate() {
        slow[1].push("x/fill", &number.to_string(), image);
    }
    let hosts = [bombs.to_string(), slow[0].host(), slow[1].host()];
    tell.send(hosts.clone()).ok();
    let Ok(victim) = begin.await else {
        return Ok(());
    };
    let attack = Arc::new(Attack {
        victim,
        counts,
        hosts: hosts.map(|host| host.replace(':', "_")),
    });
    attack.clone().unread();
    attack.clone().bombs();
    attack.clone().admin();
    attack.clone().logins();
    attack.clone().pace();
    attack.clone().trickle(&images, &own);
    attack.clone().abandoned(&own);
    attack.idle();
    std::future::pending().await
}

struct Attack {
    victim: Victim,
    counts: Counts,
    hosts: Hosts,
}

impl Attack {
    /// A connection from one of the addresses; with a small buffer for clients that read nothing.
    async fn connect(&self, number: usize, is_http2: bool) -> Result<Box<dyn Io>> {
        let target = &self.victim.target;
        let socket = TcpSocket::new_v4()?;
        if is_http2 {
            socket.set_recv_buffer_size(4096)?;
        }
        socket.set_reuseaddr(true)?;
        let last = ADDRESSES[number % ADDRESSES.len()];
        socket.bind(([127, 0, 0, last], 0).into())?;
        let stream = socket.connect(target.address).await?;
        let Some(config) = &target.tls else {
            return Ok(Box::new(stream));
        };
        let mut config = rustls::ClientConfig::clone(config);
        if is_http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let name = rustls::pki_types::ServerName::from(target.address.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
        Ok(Box::new(stream.await?))
    }

    /// Asks on a connection of its own.
    async fn ask(&self, number: usize, path: &str) -> Result<Box<dyn Io>> {
        let mut stream = self.connect(number, false).await?;
        stream.write_all(get(path).as_bytes()).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// Runs `count` tasks, each of which does it again and again with this pause.
    fn again<Work>(
        self: Arc<Self>,
        count: usize,
        pause: Duration,
        work: impl Fn(Arc<Self>, usize) -> Work + Clone + Send + 'static,
    ) where
        Work: Future<Output = Result<()>> + Send,
    {
        for number in 0..count {
            let (attack, work) = (Arc::clone(&self), work.clone());
            tokio::spawn(async move {
                loop {
                    // To be refused or cut is the outcome that an attack usually has.
                    work(Arc::clone(&attack), number).await.ok();
                    tokio::time::sleep(pause).await;
                }
            });
        }
    }

    /// bomb: a further image each two seconds.
    fn bombs(self: Arc<Self>) {
        tokio::spawn(async move {
            for number in 0..BOMBS {
                let attack = Arc::clone(&self);
                tokio::spawn(async move {
                    attack.counts.add(0);
                    let path = format!("/v2/{}/x/manifests/bomb{number}", attack.hosts[0]);
                    let mut stream = attack.ask(number, &path).await?;
                    stream.read_to_end(&mut Vec::new()).await?;
                    anyhow::Ok(())
                });
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
    }

    /// h2mem: connections are given up after seven seconds, and opened again.
    fn unread(self: Arc<Self>) {
        self.again(UNREAD, Duration::ZERO, async |attack, number| {
            let path = if number % 2 == 0 {
                &attack.victim.blob
            } else {
                &attack.victim.list
            };
            let mut stream = attack.connect(number, true).await?;
            let requests = http2::requests(path, STREAMS, http2::WINDOW, &[]);
            stream.write_all(&requests).await?;
            stream.flush().await?;
            attack.counts.add(1);
            tokio::time::sleep(Duration::from_secs(7)).await;
            Ok(())
        });
    }

    /// tasks
    fn abandoned(self: Arc<Self>, own: &[Image]) {
        let layer = own[0].layers[0].clone();
        self.again(8, Duration::from_millis(100), move |attack, number| {
            let path = format!("/v2/{}/x/fill/blobs/{layer}", attack.hosts[2]);
            async move {
                let mut stream = attack.ask(number, &path).await?;
                stream.read_exact(&mut [0; 200]).await?;
                attack.counts.add(2);
                Ok(())
            }
        });
    }

    /// slots
    fn idle(self: Arc<Self>) {
        let count = IDLE * ADDRESSES.len();
        self.again(count, Duration::from_secs(1), async |attack, number| {
            let mut stream = attack.ask(number, "/v2/").await?;
            attack.counts.add(3);
            while stream.read(&mut [0; 256]).await? > 0 {}
            Ok(())
        });
    }

    /// admin
    fn admin(self: Arc<Self>) {
        let count = ADMIN * ADDRESSES.len();
        self.again(count, Duration::from_millis(500), async |attack, number| {
            let socket = TcpSocket::new_v4()?;
            socket.bind(([127, 0, 0, ADDRESSES[number % ADDRESSES.len()]], 0).into())?;
            let mut stream = socket.connect(attack.victim.admin).await?;
            let head = "PUT /log-level HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            attack.counts.add(4);
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                stream.write_all(b"x").await?;
            }
        });
    }

    /// login
    fn logins(self: Arc<Self>) {
        let pause = Duration::from_millis(250);
        self.again(LOGINS, pause, async |attack, number| {
            let mut stream = attack.connect(number, false).await?;
            for attempt in 0_u64.. {
                let login = STANDARD.encode(format!("user{number}:wrong{attempt}"));
                let request =
                    format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {login}\r\n\r\n");
                stream.write_all(request.as_bytes()).await?;
                stream.flush().await?;
                if stream.read(&mut [0; 4096]).await? == 0 {
                    break;
                }
                attack.counts.add(5);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Ok(())
        });
    }

    /// pace
    fn pace(self: Arc<Self>) {
        self.again(15, Duration::from_millis(80), async |attack, number| {
            let made = attack.counts.get()[6];
            let path = format!("{}/manifests/no{made}", attack.victim.healthy);
            let stream = attack.ask(number, &path).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(stream);
            attack.counts.add(6);
            Ok(())
        });
    }

    /// trickle: clients that wait for each slow blob, and clients that upload slowly.
    fn trickle(self: Arc<Self>, public: &[Image], own: &[Image]) {
        for (host, images) in [(1, public), (2, own)] {
            for (number, image) in images.iter().enumerate() {
                let layer = image.layers[0].clone();
                let pause = Duration::from_secs(1);
                self.clone().again(1, pause, move |attack, _| {
                    let repository = format!("/v2/{}/x/fill", attack.hosts[host]);
                    let layer = layer.clone();
                    async move {
                        let manifest = format!("{repository}/manifests/{number}");
                        let mut stream = attack.ask(number, &manifest).await?;
                        // An answer has begun; how much of it came makes no difference.
                        stream.read_u8().await?;
                        let blob = format!("{repository}/blobs/{layer}");
                        let mut stream = attack.ask(number, &blob).await?;
                        attack.counts.add(7);
                        while stream.read(&mut [0; 4096]).await? > 0 {}
                        Ok(())
                    }
                });
            }
        }
        self.again(64, Duration::from_secs(1), async |attack, number| {
            let mut stream = attack.connect(number, false).await?;
            let head = format!(
                "POST /v2/x/blobs/uploads/?digest=sha256:{number:064x} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            attack.counts.add(7);
            loop {
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(500)).await;
                stream.write_all(b"x").await.context("the upload was cut")?;
            }
        });
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}
