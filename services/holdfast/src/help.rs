//! The help of the root: commands in groups, the services last.

use std::fmt::Write as _;

use clap::Command;

/// The groups in the order of the help, and the commands of each.
pub(crate) const GROUPS: [(&str, &[&str]); 5] = [
    ("Ask", &["status", "doctor", "diff"]),
    (
        "Prepare and undo",
        &["preload", "rm", "restore", "uninstall"],
    ),
    ("Volumes", &["ls", "fsck", "export", "import"]),
    ("Other", &["config", "version", "completion", "help"]),
    (
        "Services, which the chart runs",
        &["registry", "webhook", "controller", "node-agent"],
    ),
];

/// Gives the root a help in groups. clap lists subcommands in one group only.
pub(crate) fn grouped(command: Command) -> Command {
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}",
        groups(&command)
    );
    command.help_template(template)
}

fn groups(command: &Command) -> String {
    let mut text = String::new();
    for (heading, names) in GROUPS {
        writeln!(text, "{heading}:").ok();
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(Command::get_about)
                .map_or_else(
                    || "Prints the help of a command".to_owned(),
                    ToString::to_string,
                );
            writeln!(text, "  {name:<12}{about}").ok();
        }
        text.push('\n');
    }
    text
}
