//! Match conditions in CEL, outside the API server: whether an expression is valid, and whether it
//! matches a pod.
//!
//! The API server evaluates `matchConditions` itself for every admission. This crate checks values
//! before they are applied (SPEC 10), and evaluates the expression for existing pods (SPEC 9). It
//! knows nothing of images and does no I/O.

mod check;
mod creation;
mod optional;

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::parser::{Expression, Parser};
use kube_cel::cel::{Context, Value};
use serde_json::json;

/// Longest expression, in bytes. The API server has a cost limit instead.
pub const MAX_EXPRESSION_BYTES: usize = 16 * 1024;

/// Deepest nesting of brackets and conditionals (`? :`). The parser has a bound of 96, but
/// miscounts beyond it.
pub const MAX_NESTING: usize = 64;

/// Why an expression is invalid, or cannot be evaluated for a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The expression is empty.
    #[error("the expression is empty")]
    Empty,
    /// The expression is longer than [`MAX_EXPRESSION_BYTES`].
    #[error("the expression is longer than {MAX_EXPRESSION_BYTES} bytes")]
    TooLong,
    /// Brackets and conditionals are nested deeper than [`MAX_NESTING`].
    #[error("the expression is nested deeper than {MAX_NESTING} levels")]
    TooDeep,
    /// The expression is not CEL.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The expression uses a variable that match conditions do not have.
    #[error("undeclared variable {0:?}; valid ones are object, oldObject, request and authorizer")]
    Variable(String),
    /// The expression is not boolean.
    #[error("the expression is not a condition: it must be true or false")]
    NotACondition,
    /// The expression uses `authorizer`.
    #[error("the expression uses `authorizer`, which only the API server can evaluate")]
    Authorizer,
    /// The expression cannot be evaluated for this pod: a field is absent, or types do not match.
    #[error("the expression cannot be evaluated: {0}")]
    Evaluation(String),
    /// The expression reads a field that a pod of an owner does not have when it is created.
    #[error(
        "{0} is absent when an owner creates a pod: the API server asks before it sets the field. \
         Test it with has({0}), or use another field"
    )]
    AbsentAtCreation(String),
}

/// A valid expression.
#[derive(Debug, Clone)]
pub struct Condition {
    expression: Expression,
}

/// The assumed admission request, which a condition may use besides the pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The user who makes the request; empty if there is none.
    pub username: String,
    /// The groups of that user.
    pub groups: Vec<String>,
}

impl Facts {
    /// The request of an existing pod, as if it were created now without a user.
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
    /// Parses an expression and refuses what every API server refuses. Functions are not checked,
    /// because a newer API server may have more.
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

    /// Whether the condition matches `pod`, as if it were created now. On an error the API server
    /// would apply the failure policy.
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

/// The nesting depth of brackets plus the number of conditionals, outside of strings.
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
            // Not the optional syntax `a.?b` and `a[?b]`.
            (None, '?') if !matches!(before, '.' | '[') => choices += 1,
            _ => {}
        }
        before = character;
    }
    deepest + choices
}

fn syntax(text: &str, errors: Vec<kube_cel::cel::ParseError>) -> Error {
    let number = |position: isize| usize::try_from(position).unwrap_or_default().max(1);
    // For an incomplete text the parser reports a position after its end, without a line.
    match errors.into_iter().min_by_key(|error| error.pos) {
        Some(error) if error.pos.0 > 0 => Error::Syntax {
            line: number(error.pos.0),
            column: number(error.pos.1),
            message: error.msg,
        },
        _ => Error::Syntax {
            line: text.lines().count().max(1),
            column: text.lines().last().map_or(0, |line| line.chars().count()) + 1,
            message: "the expression is incomplete".to_owned(),
        },
    }
}

/// Converts JSON to CEL. Whole numbers are `int`, as in Kubernetes' schemas.
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
