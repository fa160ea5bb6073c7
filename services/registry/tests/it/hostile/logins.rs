//! Floods of wrong passwords: correct ones are answered meanwhile.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::child::{self, Child};

/// Wrong logins at once.
const FLOOD: usize = 300;
const USERS: usize = 6;

/// A password's check takes long enough to queue for, and not so long that the test does.
const COST: u32 = 7;

fn client(last: u8) -> reqwest::Client {
    reqwest::Client::builder()
        .local_address(IpAddr::from([127, 0, 0, last]))
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(50))
        .build()
        .unwrap()
}

async fn login(client: &reqwest::Client, url: &str, user: &str, password: &str) -> u16 {
    let request = client.get(url).basic_auth(user, Some(password));
    request
        .send()
        .await
        .map_or(0, |answer| answer.status().as_u16())
}

/// The user's name and the last part of the address for each client of a flood.
pub(crate) type Wrong = fn(usize) -> (String, u8);

/// Wrong logins, again and again, until it is dropped.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    pub(crate) answered: Arc<AtomicUsize>,
}

impl Flood {
    pub(crate) fn start(child: &Child, of: Wrong) -> Self {
        let flood = Self {
            stop: Arc::default(),
            answered: Arc::default(),
        };
        let url = format!("http://{}/v2/", child.listen);
        for number in 0..FLOOD {
            let (stop, answered) = (Arc::clone(&flood.stop), Arc::clone(&flood.answered));
            let url = url.clone();
            tokio::spawn(async move {
                let (user, last) = of(number);
                let client = client(last);
                for attempt in 0_u64.. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    login(&client, &url, &user, &format!("{number}-{attempt}")).await;
                    answered.fetch_add(1, Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// A file of users; the password of `ciN` is `right-N`.
pub(crate) fn users() -> String {
    let line = |number| {
        let hash = bcrypt::hash(format!("right-{number}"), COST).unwrap();
        format!("ci{number}:{hash}")
    };
    (0..USERS).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn correct_logins_are_answered_under_a_flood_of_wrong_ones() {
    let users = users();
    let name = "hostile::logins::correct_logins_are_answered_under_a_flood_of_wrong_ones";
    let access = "access: {htpasswd: FOLDER/users}";
    child::with(name, ("", access), &[("users", &users)], async |child| {
        let url = format!("http://{}/v2/", child.listen);
        // The way, the wrong logins, and the last part of the honest client's address.
        let floods: [(&str, Wrong, u8); 4] = [
            ("one user of the same address", |_| ("x".to_owned(), 1), 1),
            (
                "a known user of the same address",
                |_| ("ci0".to_owned(), 2),
                2,
            ),
            (
                "many users of another address",
                |number| (format!("x{number}"), 3),
                4,
            ),
            (
                "many addresses",
                |number| {
                    let last = 10 + u8::try_from(number % 200).unwrap();
                    (format!("x{number}"), last)
                },
                5,
            ),
        ];
        for ((way, of, honest), user) in floods.into_iter().zip(1..) {
            let flood = Flood::start(child, of);
            while flood.answered.load(Relaxed) < FLOOD / 4 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Never seen before, then remembered.
            let begun = Instant::now();
            for round in 0..3 {
                let (user, password) = (format!("ci{user}"), format!("right-{user}"));
                let status = login(&client(honest), &url, &user, &password).await;
                assert_eq!(status, 200, "round {round}, wrong logins from {way}");
            }
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(60), "{took:?}, {way}");
            drop(flood);
        }
    });
}
