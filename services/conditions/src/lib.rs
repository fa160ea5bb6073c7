//! Match conditions in CEL, outside the API server: is an expression valid, and does it match a
//! pod?
//!
//! The API server evaluates `matchConditions` itself for every admission. This crate serves what
//! happens elsewhere: values are checked before they are applied (SPEC 10), and pods that existed
//! before are judged by the same expression (SPEC 9). Knows nothing of images and does no I/O.

mod check;
mod optional;

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::parser::{Expression, Parser};
use kube_cel::cel::{Context, Value};
use serde_json::json;

/// Longest expression that is looked at, in bytes; the API server has a cost limit in its stead.
pub const MAX_EXPRESSION_BYTES: usize = 16 * 1024;

/// Deepest nesting of brackets and of choices (`? :`). The parser's own bound is 96, and it
/// miscounts once that is passed.
pub const MAX_NESTING: usize = 64;

/// Why an expression is of no use, or gives no answer for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing is written.
    #[error("the expression is empty")]
    Empty,
    /// The expression is longer than [`MAX_EXPRESSION_BYTES`].
    #[error("the expression is longer than {MAX_EXPRESSION_BYTES} bytes")]
    TooLong,
    /// Brackets and choices are nested deeper than [`MAX_NESTING`].
    #[error("the expression is nested deeper than {MAX_NESTING} levels")]
    TooDeep,
    /// It is not CEL.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Line of the mistake, from 1.
        line: usize,
        /// Column of the mistake, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// It names a variable that match conditions do not have.
    #[error("undeclared variable {0:?}: there are object, oldObject, request and authorizer")]
    Variable(String),
    /// It can be no boolean.
    #[error("the expression is no condition: it must be true or false")]
    NotACondition,
    /// It asks what only the API server can answer.
    #[error("only the API server can answer what the expression asks of `authorizer`")]
    Authorizer,
    /// It cannot be evaluated for this pod: a field is absent, types do not fit.
    #[error("the expression gives no answer: {0}")]
    Evaluation(String),
}

/// An expression whose form is valid.
#[derive(Debug, Clone)]
pub struct Condition {
    expression: Expression,
}

/// What a condition may ask beside the pod: the admission request that is imagined.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Who makes the request; empty where nobody does.
    pub username: String,
    /// The groups of that user.
    pub groups: Vec<String>,
}

impl Facts {
    /// The facts of a pod that exists, as if it were created now by nobody.
    pub fn of_pod(pod: &serde_json::Value) -> Self {
        let text = |pointer| {
            let value = pod.pointer(pointer).and_then(serde_json::Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            ..Self::default()
        }
    }

    fn request(&self) -> serde_json::Value {
        let kind = json!({ "group": "", "version": "v1", "kind": "Pod" });
        let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
        json!({
            "operation": "CREATE",
            "namespace": self.namespace,
            "name": self.name,
            "dryRun": false,
            "subResource": "",
            "requestSubResource": "",
            "kind": kind,
            "requestKind": kind,
            "resource": resource,
            "requestResource": resource,
            "userInfo": { "username": self.username, "groups": self.groups },
        })
    }
}

impl Condition {
    /// Parses an expression and refuses what the API server would certainly refuse. Functions are
    /// not checked: the API server may know more of them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Err(Error::Empty);
        }
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(Error::TooLong);
        }
        if MAX_NESTING < nesting(text) {
            return Err(Error::TooDeep);
        }
        let parser = Parser::new().enable_optional_syntax(true);
        let mut expression = parser
            .parse(text)
            .map_err(|errors| syntax(text, errors.errors))?;
        check::check(&expression)?;
        optional::select_by_index(&mut expression);
        Ok(Self { expression })
    }

    /// Whether the condition holds for `pod`, as if it were created now. An error means that the
    /// API server would act by its failure policy.
    pub fn matches(&self, pod: &serde_json::Value, facts: &Facts) -> Result<bool, Error> {
        if check::asks_authorizer(&self.expression) {
            return Err(Error::Authorizer);
        }
        let mut context = Context::default().with_all();
        context.add_variable_from_value("object", value(pod));
        context.add_variable_from_value("oldObject", Value::Null);
        context.add_variable_from_value("request", value(&facts.request()));
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Bool(answer)) => Ok(answer),
            Ok(_) => Err(Error::NotACondition),
            Err(error) => Err(Error::Evaluation(error.to_string())),
        }
    }
}

/// Parses `expression` and evaluates it for `pod`.
pub fn evaluate(expression: &str, pod: &serde_json::Value, facts: &Facts) -> Result<bool, Error> {
    Condition::parse(expression)?.matches(pod, facts)
}

/// How deep brackets are nested at most, and how many choices there are, outside of strings.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut choices) = (0_usize, 0, 0);
    let mut quote = None;
    let mut before = ' ';
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => {
                characters.next();
            }
            (Some(open), character) if character == open => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '(' | '[' | '{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            // `a.?b` and `a[?b]` ask for what may be absent.
            (None, '?') if !matches!(before, '.' | '[') => choices += 1,
            _ => {}
        }
        before = character;
    }
    deepest + choices
}

fn syntax(text: &str, errors: Vec<kube_cel::cel::ParseError>) -> Error {
    let number = |position: isize| usize::try_from(position).unwrap_or_default().max(1);
    // The grammar's own message for an unfinished text points behind its end, at no line.
    match errors.into_iter().min_by_key(|error| error.pos) {
        Some(error) if error.pos.0 > 0 => Error::Syntax {
            line: number(error.pos.0),
            column: number(error.pos.1),
            message: error.msg,
        },
        _ => Error::Syntax {
            line: text.lines().count().max(1),
            column: text.lines().last().map_or(0, |line| line.chars().count()) + 1,
            message: "the expression cannot be read".to_owned(),
        },
    }
}

/// JSON as CEL sees it: whole numbers are `int`, as in Kubernetes' schema.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(answer) => Value::Bool(*answer),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::Null,
        },
        serde_json::Value::String(text) => Value::String(Arc::new(text.clone())),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        serde_json::Value::Object(fields) => {
            let map: HashMap<Key, Value> = fields
                .iter()
                .map(|(key, field)| (Key::String(Arc::new(key.clone())), value(field)))
                .collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

#[cfg(test)]
mod tests;
