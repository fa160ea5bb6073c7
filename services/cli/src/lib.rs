//! The operator's commands. Each one is fetch → decide → print, and the middle is pure. The crate
//! starts no service and knows nothing of how one works: it reads what the API server and a volume
//! say.

mod command;
mod config_args;
mod config_check;
mod doctor;
mod export;
mod fsck;
mod import;
mod ls;
mod preload;
mod restore;
mod rm;
mod status;
mod uninstall;
mod version;

pub use command::{Command, block_on, run};
pub use config_args::ConfigArgs;
pub use holdfast_cli_kit::exit_status::{WRONG_USAGE, service_failed};
pub use holdfast_cli_kit::terminal::print;
