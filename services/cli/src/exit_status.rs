//! How a command ends that answers a question: 0 is yes, 1 is no, 2 is that it cannot tell.
#![allow(clippy::print_stderr, reason = "what a command prints is its result")]

use std::process::ExitCode;

/// The exit status of a command that cannot tell.
const CANNOT_TELL: u8 = 2;
/// The exit status of a wrong configuration (`EX_USAGE` of `sysexits.h`).
pub const WRONG_USAGE: u8 = 64;

/// What a command found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// The exit status. What kept the command from finding out is said.
pub(crate) fn end(answer: anyhow::Result<Answer>) -> ExitCode {
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::FAILURE,
        Ok(Answer::Unknown) => ExitCode::from(CANNOT_TELL),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(CANNOT_TELL)
        }
    }
}

/// Prints the error of a command that failed, and returns its exit status: 64 if the
/// configuration is wrong, else 1.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let configuration = error
        .chain()
        .any(<dyn std::error::Error>::is::<holdfast_config::Error>);
    if configuration {
        ExitCode::from(WRONG_USAGE)
    } else {
        ExitCode::FAILURE
    }
}
