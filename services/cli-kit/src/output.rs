//! What commands print: data to standard output in the format that `-o` asks for, everything else
//! to standard error. JSON and YAML are one document with `apiVersion` and `kind`. If a command
//! fails, `json`, `jsonl` and `yaml` print a document of kind `Error`.

use std::borrow::Cow;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context as _;
use holdfast_config::yaml;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::exit_status::{self, Answer};
use crate::json_path::JsonPath;
use crate::terminal;

/// The version of the documents that commands print.
const API_VERSION: &str = "cli.holdfast.dev/v1alpha1";

/// Flags of every command.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct CommonArgs {
    /// Prints no progress and no hints
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Prints every cause of an error
    #[arg(short, long)]
    verbose: bool,
    /// When to use colors: auto, always or never
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    color: Color,
    /// Exits with 0 whatever the answer is
    #[arg(long)]
    exit_zero: bool,
}

/// Flags of commands that print data.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Format: table, wide, json, jsonl, yaml, name or jsonpath=EXPRESSION
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Prints tables without their head
    #[arg(long)]
    no_headers: bool,
    /// Writes the JSON document to a file; use -o json instead
    #[arg(long, value_name = "FILE", hide = true)]
    json: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// When to use colors. `NO_COLOR` and `CLICOLOR_FORCE` count where it is `auto`.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

/// The format of the data.
#[derive(Debug, Clone, Default)]
enum Format {
    #[default]
    Table,
    Wide,
    Json,
    /// One JSON document a line: each element of a list, or the whole document.
    JsonLines,
    Yaml,
    Name,
    JsonPath(JsonPath),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "wide" => Ok(Self::Wide),
            "json" => Ok(Self::Json),
            "jsonl" => Ok(Self::JsonLines),
            "yaml" => Ok(Self::Yaml),
            "name" => Ok(Self::Name),
            _ => match text.strip_prefix("jsonpath=") {
                Some(expression) => expression.parse().map(Self::JsonPath),
                None => Err(
                    "use table, wide, json, jsonl, yaml, name or jsonpath=EXPRESSION".to_owned(),
                ),
            },
        }
    }
}

/// What a command found, in every form in which it can be printed.
#[derive(Debug, Clone)]
pub struct Document {
    kind: &'static str,
    answer: Answer,
    data: Value,
    table: String,
    wide: Option<String>,
    names: Vec<String>,
}

impl Document {
    /// A document of this kind. Data that is a list becomes `items`.
    pub fn new(
        kind: &'static str,
        answer: Answer,
        data: &impl Serialize,
        table: String,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            kind,
            answer,
            data: serde_json::to_value(data)?,
            table,
            wide: None,
            names: Vec::new(),
        })
    }

    /// The text for `-o wide`; without it that is the table.
    #[must_use]
    pub fn with_wide(mut self, wide: String) -> Self {
        self.wide = Some(wide);
        self
    }

    /// The lines for `-o name`: `KIND/NAMESPACE/NAME`, or what names the object elsewhere.
    #[must_use]
    pub fn with_names(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.names = names.into_iter().collect();
        self
    }

    /// The answer that becomes the exit status.
    pub fn answer(&self) -> Answer {
        self.answer
    }

    fn envelope(&self) -> Value {
        let mut document = Map::new();
        document.insert("apiVersion".to_owned(), API_VERSION.into());
        document.insert("kind".to_owned(), self.kind.into());
        document.insert("verdict".to_owned(), json!(self.answer));
        match &self.data {
            Value::Object(fields) => document.extend(fields.clone()),
            items => {
                document.insert("items".to_owned(), items.clone());
            }
        }
        Value::Object(document)
    }
}

impl CommonArgs {
    /// Makes the process print as the flags say.
    pub fn apply(&self) {
        let choice = match self.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        terminal::set_quiet(self.quiet);
    }

    /// Prints an error, and returns the exit status of the command that failed by it.
    pub fn fail(&self, error: &anyhow::Error) -> ExitCode {
        terminal::error(&exit_status::message(error));
        if self.verbose {
            for cause in error.chain().skip(1) {
                terminal::cause(&cause.to_string());
            }
        }
        let status = exit_status::of_error(error);
        if self.exit_zero && status == exit_status::UNKNOWN {
            return ExitCode::SUCCESS;
        }
        ExitCode::from(status)
    }

    /// The exit status of a command that has an answer.
    pub fn exit(&self, answer: Answer) -> ExitCode {
        if self.exit_zero {
            return ExitCode::SUCCESS;
        }
        answer.into()
    }
}

impl OutputArgs {
    /// Makes the process print as the flags say.
    pub fn apply(&self) {
        self.common.apply();
    }

    /// Prints the result of a command, and returns its exit status.
    pub fn finish(&self, result: anyhow::Result<Document>) -> ExitCode {
        let printed = result.and_then(|document| {
            // First what can fail, so that standard output holds one document in every case.
            let text = self.render(&document)?;
            self.write_file(&document)?;
            self.print(&text);
            Ok(document.answer)
        });
        match printed {
            Ok(answer) => self.common.exit(answer),
            Err(error) => {
                self.print_error(&error);
                self.common.fail(&error)
            }
        }
    }

    /// As [`Self::finish`], with `special` as the exit status of this answer.
    pub fn finish_as(
        &self,
        result: anyhow::Result<Document>,
        answer: Answer,
        special: u8,
    ) -> ExitCode {
        let is_special = matches!(&result, Ok(document) if document.answer == answer);
        let status = self.finish(result);
        if is_special && !self.common.exit_zero {
            ExitCode::from(special)
        } else {
            status
        }
    }

    /// With `-o json`, `-o jsonl` and `-o yaml`, prints the error as a document.
    fn print_error(&self, error: &anyhow::Error) {
        let code = if exit_status::is_wrong_usage(error) {
            "WrongUsage"
        } else {
            "CouldNotRun"
        };
        let message = exit_status::message(error);
        let document = json!({
            "apiVersion": API_VERSION,
            "kind": "Error",
            "error": {"code": code, "message": message},
        });
        match self.output {
            Format::Json => self.print(&format!("{document:#}\n")),
            Format::JsonLines => self.print(&format!("{document}\n")),
            Format::Yaml => self.print(&yaml::to_string(&document).unwrap_or_default()),
            _ => {}
        }
    }

    fn print(&self, text: &str) {
        let is_terminal = std::io::stdout().is_terminal();
        terminal::print(&self.for_stdout(text, is_terminal));
    }

    /// The text as standard output gets it. A program gets every byte. A terminal gets blanks for
    /// control characters of documents; tables have none but their colors.
    pub fn for_stdout<'a>(&self, text: &'a str, is_terminal: bool) -> Cow<'a, str> {
        if is_terminal && !self.is_table() {
            Cow::Owned(terminal::clean_lines(text))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// Whether the data is printed as a table.
    pub fn is_table(&self) -> bool {
        matches!(self.output, Format::Table | Format::Wide)
    }

    /// The document in the format that was asked for.
    pub fn render(&self, document: &Document) -> anyhow::Result<String> {
        Ok(match &self.output {
            Format::Table => self.heads(&document.table),
            Format::Wide => self.heads(document.wide.as_ref().unwrap_or(&document.table)),
            Format::Json => format!("{:#}\n", document.envelope()),
            Format::JsonLines => match &document.data {
                Value::Array(items) => {
                    let lines: Vec<String> = items.iter().map(Value::to_string).collect();
                    lines
                        .iter()
                        .flat_map(|line| [line.as_str(), "\n"])
                        .collect()
                }
                _ => format!("{}\n", document.envelope()),
            },
            Format::Yaml => yaml::to_string(&document.envelope())?,
            Format::Name => terminal::lines(document.names.iter().cloned()),
            Format::JsonPath(path) => {
                let document = document.envelope();
                let found = path.select(&document)?;
                let texts: Vec<String> = found
                    .into_iter()
                    .map(|found| match found {
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    })
                    .collect();
                format!("{}\n", texts.join(" "))
            }
        })
    }

    fn heads(&self, table: &str) -> String {
        if self.no_headers {
            terminal::without_heads(table)
        } else {
            terminal::with_heads(table)
        }
    }

    /// Writes what `--json` asks for. A reader never sees half a document.
    pub fn write_file(&self, document: &Document) -> anyhow::Result<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        terminal::note("--json FILE is deprecated; use -o json");
        let text = format!("{:#}\n", document.envelope());
        write_whole(path, &text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    // A pipe, a device or a link is written through, not replaced.
    if std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return std::fs::write(path, text);
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_written_through_and_a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write_whole(&file, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_whole(&link, "two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        write_whole(&file, "three").unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "three");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    fn document() -> Document {
        let data = json!({"images": [{"source": "a:1"}, {"source": "b:1"}], "count": 2});
        Document::new("Status", Answer::No, &data, "text\n".to_owned())
            .unwrap()
            .with_names(["artifact/shop/a".to_owned()])
    }

    fn render(format: &str) -> String {
        let args = OutputArgs {
            output: format.parse().unwrap(),
            ..OutputArgs::default()
        };
        args.render(&document()).unwrap()
    }

    #[test]
    fn each_format_shows_the_same_document() {
        let json: Value = serde_json::from_str(&render("json")).unwrap();
        assert_eq!(json["apiVersion"], API_VERSION);
        assert_eq!(
            (&json["kind"], &json["verdict"]),
            (&json!("Status"), &json!("no"))
        );
        assert_eq!(json["count"], 2);
        let yaml: Value = yaml::from_str(&render("yaml")).unwrap();
        assert_eq!(yaml, json);
        let line = render("jsonl");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), json);
        assert_eq!(render("table"), "text\n");
        assert_eq!(render("wide"), "text\n");
        assert_eq!(render("name"), "artifact/shop/a\n");
    }

    #[test]
    fn a_path_is_read_as_kubectl_and_as_the_rfc_write_it() {
        for expression in [
            "{.images[*].source}",
            ".images[*].source",
            "$.images[*].source",
        ] {
            assert_eq!(
                render(&format!("jsonpath={expression}")),
                "a:1 b:1\n",
                "{expression}"
            );
        }
        assert_eq!(render("jsonpath=count"), "2\n");
        for wrong in [
            "jsonpath={range .images[*]}{.source}{end}",
            "jsonpath=$[",
            "xml",
        ] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_list_has_items() {
        let list = Document::new("RepositoryList", Answer::Yes, &json!(["a"]), String::new());
        assert_eq!(list.unwrap().envelope()["items"], json!(["a"]));
        let items = json!([{"name": "a"}, {"name": "b"}]);
        let list = Document::new("RepositoryList", Answer::Yes, &items, String::new()).unwrap();
        let args = OutputArgs {
            output: Format::JsonLines,
            ..OutputArgs::default()
        };
        let lines = args.render(&list).unwrap();
        assert_eq!(lines, "{\"name\":\"a\"}\n{\"name\":\"b\"}\n");
    }
}
