//! Large HTTP/2 windows, for a bounded number of connections, in total and per address.
//!
//! HTTP/2 fixes the window of a connection at its start, before anything is known about the client.
//! A small window bounds the buffered bytes, but also the speed, to one window per round trip. So
//! some connections get a large one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::connection_slots::client_address;
use parking_lot::{Mutex, MutexGuard};

/// Bytes of a large window, per connection and per stream.
pub const LARGE_WINDOW: u32 = 1 << 20;

/// Connections of a listener that have a large window at a time.
pub const LARGE_WINDOWS: usize = 64;

/// The same per address (IPv6: per /64).
pub const LARGE_WINDOWS_OF_ADDRESS: usize = 16;

/// The large windows of a listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    most: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    taken: usize,
    of_address: HashMap<IpAddr, usize>,
}

/// The large window of one connection, released when dropped.
#[derive(Debug)]
pub(super) struct LargeWindow {
    windows: Windows,
    client: IpAddr,
}

impl Windows {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            table: Arc::default(),
        }
    }

    /// Takes a large window for a connection of `address`. `None` if all are taken.
    pub(super) fn take(&self, address: IpAddr) -> Option<LargeWindow> {
        let client = client_address(address);
        let mut table = self.table();
        let of_address = table.of_address.get(&client).copied().unwrap_or(0);
        if self.most <= table.taken || LARGE_WINDOWS_OF_ADDRESS <= of_address {
            return None;
        }
        table.taken += 1;
        table.of_address.insert(client, of_address + 1);
        Some(LargeWindow {
            windows: self.clone(),
            client,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

impl Drop for LargeWindow {
    fn drop(&mut self) {
        let mut table = self.windows.table();
        table.taken -= 1;
        if let Some(count) = table.of_address.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                table.of_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_the_windows() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let small = super::super::Limits::default().http2_window;
        for (name, value) in [
            ("http2_window", small as usize),
            ("LARGE_WINDOW", LARGE_WINDOW as usize),
            ("LARGE_WINDOWS", LARGE_WINDOWS),
            ("LARGE_WINDOWS_OF_ADDRESS", LARGE_WINDOWS_OF_ADDRESS),
        ] {
            let cells = format!("| `{name}` | {value} |");
            assert!(document.contains(&cells), "docs/LIMITS.md lacks {cells}");
        }
    }
}
