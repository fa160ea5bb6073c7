//! The operator's commands. Each one is fetch → decide → print, and the middle is pure. The crate
//! starts no service and knows nothing of how one works: it reads what the API server and a volume
//! say.

mod answer;
mod cluster;
mod command;
mod config_check;
mod diff;
mod doctor;
mod export;
mod fsck;
mod import;
mod ls;
mod preload;
mod restore;
mod standing;
mod status;
mod terminal;
mod uninstall;

pub use answer::{WRONG_USAGE, failed};
pub use command::{Command, ConfigArgs, block_on, run};
