//! The bounds on connections.

use std::net::SocketAddr;

use super::{create, eventually, rewriting, start};

#[tokio::test]
async fn connections_of_an_address_to_the_webhook_are_bounded() {
    const MOST: usize = 512;
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let mut held = Vec::new();
    for _ in 0..MOST + 8 {
        held.push(
            tokio::net::TcpStream::connect(webhook.address)
                .await
                .unwrap(),
        );
    }
    eventually("those beyond the limit are closed", || {
        let closed = held.iter().filter(|stream| is_closed(stream)).count();
        async move { closed == 8 }
    })
    .await;
}

/// Whether the other side has ended a connection.
fn is_closed(stream: &tokio::net::TcpStream) -> bool {
    match stream.try_read(&mut [0; 1]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn connections_to_the_webhook_are_bounded() {
    const MOST: usize = 1024;
    const BEYOND: usize = 8;
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let mut held = Vec::new();
    // No address has more than its share.
    for number in 0..MOST + BEYOND {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let last = u8::try_from(2 + number % 3).unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        held.push(socket.connect(webhook.address).await.unwrap());
    }
    let closed = || held.iter().filter(|stream| is_closed(stream)).count();
    eventually("idle ones make room for further ones", || {
        let closed = closed();
        async move { closed == BEYOND }
    })
    .await;
    // An honest client makes one more of them end.
    let answer = webhook.review(create(true)).await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(
        (BEYOND + 1..=BEYOND + 2).contains(&closed()),
        "{}",
        closed()
    );
}
