//! Who may do what, over real listeners: users, client certificates and tokens as clients bring
//! them, and files that change while the registry runs.

mod process;
mod sessions;
mod tokens;
mod users;
