//! Exit statuses: 0 yes or done, 1 no, 2 cannot tell or could not run, 4 done as far as the images
//! are known, 64 wrong usage or configuration, 130 interrupted.

use std::process::ExitCode;

use serde::Serialize;

/// A command that cannot tell, or that could not run.
pub(crate) const UNKNOWN: u8 = 2;
/// `preload` did its work, but manifests have objects whose images are not known.
pub const IMAGES_UNKNOWN: u8 = 4;
/// A wrong command line or configuration (`EX_USAGE` of `sysexits.h`).
pub const WRONG_USAGE: u8 = 64;
/// Interrupted by SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

/// What a command found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(
    missing_docs,
    reason = "clap would print the documentation of variants"
)]
pub enum Answer {
    // Or done.
    Yes,
    // Something is missing or wrong.
    No,
    // Not everything could be read.
    #[value(skip)]
    Unknown,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Yes => Self::SUCCESS,
            Answer::No => Self::FAILURE,
            Answer::Unknown => Self::from(UNKNOWN),
        }
    }
}

/// A command line that contradicts itself or lacks something that clap cannot check.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The user pressed Ctrl-C.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The API server does not answer. The text has the last cause only: the ones between name layers
/// of the HTTP client.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) kube::Error);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last: &dyn std::error::Error = &self.0;
        while let Some(cause) = last.source() {
            last = cause;
        }
        write!(f, "the API server cannot be reached: {last}")
    }
}

impl std::error::Error for Unreachable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Whether the configuration or the command line is wrong.
pub fn is_wrong_usage(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<holdfast_config::Error>() || cause.is::<Usage>())
}

/// The exit status of a command that failed.
pub fn of_error(error: &anyhow::Error) -> u8 {
    if is_wrong_usage(error) {
        WRONG_USAGE
    } else if error.is::<Interrupted>() {
        INTERRUPTED
    } else {
        UNKNOWN
    }
}

/// The error and its causes. Libraries repeat a cause in the text of the error above it: each
/// cause is named once.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let is_whole = cause.is::<Unreachable>();
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        if is_whole {
            break;
        }
    }
    text
}

/// Prints the error of a service that ended, and returns its exit status: 64 for a wrong
/// configuration, else 1.
pub fn service_failed(error: &anyhow::Error) -> ExitCode {
    crate::terminal::error(&message(error));
    if is_wrong_usage(error) {
        ExitCode::from(WRONG_USAGE)
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn a_failure_is_no_answer_and_wrong_usage_is_told_apart() {
        assert_eq!(of_error(&anyhow!("no connection")), UNKNOWN);
        let usage = anyhow::Error::new(Usage("give --yes".to_owned())).context("restore");
        assert_eq!(of_error(&usage), WRONG_USAGE);
        assert_eq!(of_error(&Interrupted.into()), INTERRUPTED);
    }

    #[test]
    fn a_cause_that_is_repeated_is_named_once() {
        let refused = anyhow!("Connection refused (os error 111)");
        let error = Err::<(), _>(refused).context("tcp connect error");
        let error =
            error.context("client error: tcp connect error: Connection refused (os error 111)");
        let error = error.context("cannot list pods").unwrap_err();
        assert_eq!(
            message(&error),
            "cannot list pods: client error: tcp connect error: Connection refused (os error 111)"
        );
    }
}
