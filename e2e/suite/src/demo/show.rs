//! What the demo shows: steps with their seconds, facts below them; colours only on a terminal.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};

/// The audience.
pub(super) struct Show {
    colours: bool,
    started: Instant,
    steps: Vec<Value>,
    facts: Map<String, Value>,
    /// What was printed below the current step.
    lines: Vec<String>,
}

impl Show {
    pub(super) fn new() -> Self {
        Self {
            colours: std::io::stdout().is_terminal(),
            started: Instant::now(),
            steps: Vec::new(),
            facts: Map::new(),
            lines: Vec::new(),
        }
    }

    /// Announces a step, runs it, and says how long it took.
    pub(super) fn step<T>(
        &mut self,
        title: &str,
        act: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let number = self.steps.len() + 1;
        println!("{}", self.bold(&format!("{number}. {title}")));
        drop(std::io::stdout().flush());
        let started = Instant::now();
        let result = act(self);
        let seconds = started.elapsed().as_secs_f64();
        let word = if result.is_ok() {
            self.green("ok")
        } else {
            self.red("FAILED")
        };
        println!("   {word} {seconds:.1} s");
        self.steps
            .push(json!({"title": title, "seconds": seconds, "ok": result.is_ok(), "shown": std::mem::take(&mut self.lines)}));
        result
    }

    /// Prints lines below the current step.
    pub(super) fn say(&mut self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
            self.lines.push(line.to_owned());
        }
    }

    /// Prints a fact and keeps it for the report.
    pub(super) fn fact(&mut self, key: &str, text: &str, value: Value) {
        self.say(text);
        self.facts.insert(key.to_owned(), value);
    }

    /// The closing lines.
    pub(super) fn finish(&self, result: &Result<()>) {
        println!();
        for step in &self.steps {
            println!(
                "{:>7.1} s  {}",
                step["seconds"].as_f64().unwrap_or_default(),
                step["title"].as_str().unwrap_or_default()
            );
        }
        println!("{:>7.1} s  in all", self.started.elapsed().as_secs_f64());
        match result {
            Ok(()) => println!("{}", self.green("Holdfast held.")),
            Err(error) => println!("{} {error:#}", self.red("Holdfast did not hold:")),
        }
    }

    pub(super) fn steps(&self) -> &[Value] {
        &self.steps
    }

    pub(super) fn facts(&self) -> &Map<String, Value> {
        &self.facts
    }

    fn bold(&self, text: &str) -> String {
        self.coloured("1", text)
    }

    fn green(&self, text: &str) -> String {
        self.coloured("32", text)
    }

    fn red(&self, text: &str) -> String {
        self.coloured("31", text)
    }

    fn coloured(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
