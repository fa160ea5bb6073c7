//! What hostile clients and upstreams send. The hostile tests and `cargo xtask bench hostile` share
//! it.

pub mod bomb;
pub mod http2;
pub mod reviews;
