//! What the operator's commands share: access to the cluster and to the leading controller, the
//! flags and formats of output, exit statuses, findings, the confirmation and the watch. It has no
//! command and decides nothing.

pub mod artifact_status;
pub mod cluster;
pub mod confirm;
pub mod duration;
pub mod exit_status;
pub mod finding;
mod json_path;
pub mod leader;
pub mod output;
pub mod sort;
pub mod terminal;
pub mod watch;
