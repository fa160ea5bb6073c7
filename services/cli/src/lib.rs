//! The operator's commands. Each one is fetch → decide → print, and the middle is pure. The crate
//! starts no service and knows nothing of how one works: it reads what the API server and a volume
//! say.

mod artifact_status;
mod cluster;
mod command;
mod config_check;
mod diff;
mod doctor;
mod exit_status;
mod export;
mod fsck;
mod import;
mod ls;
mod preload;
mod restore;
mod status;
mod terminal;
mod uninstall;

pub use command::{Command, ConfigArgs, block_on, run};
pub use exit_status::{WRONG_USAGE, failed};
