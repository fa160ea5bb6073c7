//! The operator's commands. Each one is fetch → decide → print, and the middle is pure. The crate
//! starts no service and knows nothing of how one works: it reads what the API server and a volume
//! say.

mod artifact_status;
mod cluster;
mod command;
mod config_args;
mod config_check;
mod confirm;
mod diff;
mod doctor;
mod duration;
mod exit_status;
mod export;
mod finding;
mod fsck;
mod import;
mod json_path;
mod ls;
mod output;
mod preload;
mod restore;
mod rm;
mod sort;
mod status;
mod terminal;
mod uninstall;
mod version;
mod watch;

pub use command::{Command, block_on, run};
pub use config_args::ConfigArgs;
pub use exit_status::{WRONG_USAGE, service_failed};
pub use terminal::print;
