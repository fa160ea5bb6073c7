//! How a command ends that answers a question: 0 is yes, 1 is no, 2 is that it cannot tell.
#![allow(clippy::print_stderr, reason = "what a command prints is its result")]

use std::process::ExitCode;

/// The exit status of a command that cannot tell.
const CANNOT_TELL: u8 = 2;

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
