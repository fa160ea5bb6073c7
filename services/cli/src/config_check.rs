//! `holdfast config check`: checks a file of values as far as that is possible without a cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use holdfast_cli_kit::exit_status::{Answer, WRONG_USAGE};
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::terminal;
use holdfast_conditions::Condition;
use holdfast_config::Values;
use serde_json::json;

const EXPRESSION: &str =
    "global.networkfunctionextension.webhook.pod.mutation.matchConditionExpression";

/// Arguments of `config check`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast config check -f values.yaml
  holdfast config check -f values.yaml -o json

Exit status: 0 the values are valid, 2 the file cannot be read, 64 the values are wrong.")]
pub struct Args {
    /// Helm values (YAML)
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Checks the file and reports what is wrong with it.
pub(crate) fn run(args: &Args) -> ExitCode {
    args.output.apply();
    if let Err(error) = std::fs::metadata(&args.file) {
        let context = format!("cannot read {}", args.file.display());
        return args
            .output
            .finish(Err(anyhow::Error::new(error).context(context)));
    }
    let problems = check(&args.file);
    let file = args.file.display();
    let lines = problems.iter().map(|problem| format!("{file}: {problem}"));
    let table = terminal::lines(lines);
    if problems.is_empty() {
        let data = json!({"problems": []});
        let table = format!("{file}: the values are valid\n");
        return args
            .output
            .finish(Document::new("ConfigCheck", Answer::Yes, &data, table));
    }
    let data = json!({"problems": problems});
    let result = Document::new("ConfigCheck", Answer::No, &data, table);
    args.output.finish_as(result, Answer::No, WRONG_USAGE)
}

/// The problems, one a line, each with its key.
fn check(file: &Path) -> Vec<String> {
    let values = match Values::from_file(file) {
        Ok(values) => values,
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            let text = format!("{error}{}", source.unwrap_or_default());
            return text.lines().map(str::to_owned).collect();
        }
    };
    let condition = Condition::parse(values.match_condition());
    match condition.and_then(|condition| condition.check_creation()) {
        Ok(()) => Vec::new(),
        Err(error) => vec![format!("{EXPRESSION}: {error}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(values: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), values).unwrap();
        check(file.path()).join("\n")
    }

    #[test]
    fn valid_values_have_no_problems() {
        assert_eq!(problems(""), "");
        assert_eq!(
            problems("global: {networkfunctionextension: {enableClusterRegistry: true}}"),
            ""
        );
    }

    // SPEC 2, SPEC 3
    #[test]
    fn messages_name_the_key() {
        for (values, key) in [
            ("logging: {format: xml}", "logging.format"),
            (
                "global: {networkfunctionextension: {enableEarlyLoading: true}}",
                "enableEarlyLoading",
            ),
            ("nonsense: 1", "nonsense"),
        ] {
            let text = problems(values);
            assert!(text.contains(key), "{values}: {text:?} does not name {key}");
        }
    }

    // SPEC 10
    #[test]
    fn an_expression_that_is_no_cel_is_named_with_its_place() {
        let text = problems(
            "global: {networkfunctionextension: {webhook: {pod: {mutation: {matchConditionExpression: 'object.metadata =='}}}}}",
        );
        assert!(text.starts_with(EXPRESSION), "{text}");
        assert!(text.contains("column"), "{text}");
    }

    // SPEC 10
    #[test]
    fn a_field_that_pods_of_owners_lack_at_creation_is_named() {
        let values = |expression: &str| {
            let mutation = json!({"mutation": {"matchConditionExpression": expression}});
            json!({"global": {"networkfunctionextension": {"webhook": {"pod": mutation}}}})
                .to_string()
        };
        let text = problems(&values("object.metadata.name != 'skip'"));
        assert!(text.starts_with(EXPRESSION), "{text}");
        assert!(text.contains("object.metadata.name is absent"), "{text}");
        let guarded = "!has(object.metadata.name) || object.metadata.name != 'skip'";
        assert_eq!(problems(&values(guarded)), "");
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        assert!(
            check(Path::new("/nowhere/values.yaml"))
                .join("")
                .contains("/nowhere/values.yaml")
        );
    }
}
