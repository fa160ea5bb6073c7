//! All of it at once: clients that hold connections, read nothing and guess passwords, while an
//! honest one pulls what is local.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::io::AsyncWriteExt as _;

use super::{
    child::{self, Child, status},
    logins::{self, Flood},
    memory,
};

/// What the process may take in all.
const MEMORY: u64 = 512 << 20;

/// Holds `count` connections from `127.0.0.LAST` that trickle, and makes those again that end.
fn hold(address: std::net::SocketAddr, last: u8, count: usize, stop: &Arc<AtomicBool>) {
    for _ in 0..count {
        let stop = Arc::clone(stop);
        tokio::spawn(async move {
            while !stop.load(Relaxed) {
                let trickle = async {
                    let mut stream = child::connect(address, last).await?;
                    stream
                        .write_all(
                            b"PUT /log-level HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n",
                        )
                        .await?;
                    while !stop.load(Relaxed) {
                        stream.write_all(b"x").await?;
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    Ok::<_, std::io::Error>(())
                };
                trickle.await.ok();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
}

/// Streams that nobody reads, made again when they are cut.
async fn hoard(child: &Child, path: &str, clients: &mut Vec<tokio::net::TcpStream>) {
    clients.clear();
    for _ in 0..8 {
        clients.push(memory::hoard(child, path).await);
    }
}

#[test]
fn an_honest_pull_goes_on_while_everything_is_tried_at_once() {
    const SIZE: usize = 1 << 20;
    const PULLS: usize = 40;
    let limits = ", connections: 256, connectionsPerAddress: 64";
    let lines = "access: {htpasswd: FOLDER/users, anonymousPull: true, rules: [{users: ['*'], actions: [pull, push]}]}";
    let name = "hostile::everything::an_honest_pull_goes_on_while_everything_is_tried_at_once";
    child::with(
        name,
        (limits, lines),
        &[("users", &logins::users())],
        async |child| {
            let path = memory::push(child, vec![7; SIZE]).await;
            let stop = Arc::new(AtomicBool::new(false));
            for last in 20..24 {
                hold(child.listen, last, 64, &stop);
                hold(child.admin, last, 64, &stop);
            }
            let flood = Flood::start(child, |number| {
                (format!("x{number}"), 30 + u8::try_from(number % 4).unwrap())
            });
            let mut clients = Vec::new();
            let (mut most, mut times) = (0, Vec::new());
            for number in 0..PULLS {
                if number % 20 == 0 {
                    hoard(child, &path, &mut clients).await;
                }
                let begun = Instant::now();
                let pulled = memory::pulls(child, 9, &path);
                let pulled = tokio::time::timeout(Duration::from_secs(20), pulled).await;
                assert!(pulled.is_ok_and(|bytes| SIZE < bytes), "pull {number}");
                times.push(begun.elapsed());
                if number % 10 == 0 {
                    let probe = status(child.admin, 1, "/livez").await;
                    assert_eq!(probe, Some(200), "the probe at pull {number}");
                }
                most = most.max(child.memory());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(most < MEMORY, "{} MiB", most >> 20);
            times.sort();
            // The machine is shared with the clients; the strict figures are the benchmark's.
            let median = times[PULLS / 2];
            assert!(median < Duration::from_secs(3), "{median:?} at the median");
            drop(flood);
            stop.store(true, Relaxed);
        },
    );
}
