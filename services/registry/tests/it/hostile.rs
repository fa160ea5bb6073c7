//! Clients and contents that lie or are merely odd, against a real registry over a real listener:
//! nothing wrong is stored, and other clients are not affected.

mod child;
mod connections;
mod copies;
mod everything;
mod fills;
mod logins;
mod memory;
mod mirror;
mod names;
mod pulls;
mod uploads;
