//! Static checks of an expression: its variables, and whether it can be boolean.

use kube_cel::cel::common::ast::{EntryExpr, Expr};
use kube_cel::cel::parser::Expression;

use crate::Error;

/// The variables of match conditions.
const VARIABLES: [&str; 4] = ["object", "oldObject", "request", AUTHORIZER];
const AUTHORIZER: &str = "authorizer";
/// Names of types, which are values in CEL, and the first component of well-known types.
const TYPES: [&str; 14] = [
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "dyn",
    "optional",
    "optional_type",
    "google",
];
/// Namespaces of functions (`math.greatest`), which parse as variables.
const FUNCTION_NAMESPACES: [&str; 9] = [
    "optional",
    "math",
    "sets",
    "strings",
    "base64",
    "format",
    "jsonpatch",
    "cel",
    "net",
];

pub(crate) fn check(expression: &Expression) -> Result<(), Error> {
    if matches!(
        &expression.expr,
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified
    ) {
        return Err(Error::NotACondition);
    }
    if let Expr::Literal(literal) = &expression.expr
        && !matches!(
            literal,
            kube_cel::cel::common::ast::LiteralValue::Boolean(_)
        )
    {
        return Err(Error::NotACondition);
    }
    let mut unknown = None;
    walk(expression, &mut Vec::new(), &mut |name, bound| {
        let known = bound
            || [&VARIABLES[..], &TYPES, &FUNCTION_NAMESPACES]
                .iter()
                .any(|names| names.contains(&name));
        if !known && unknown.is_none() {
            unknown = Some(name.to_owned());
        }
    });
    unknown.map_or(Ok(()), |name| Err(Error::Variable(name)))
}

pub(crate) fn asks_authorizer(expression: &Expression) -> bool {
    let mut found = false;
    walk(expression, &mut Vec::new(), &mut |name, bound| {
        found |= !bound && name == AUTHORIZER;
    });
    found
}

/// Visits every part of an expression, outer parts first.
pub(crate) fn visit<'a>(expression: &'a Expression, each: &mut impl FnMut(&'a Expression)) {
    each(expression);
    let mut parts: Vec<&Expression> = Vec::new();
    match &expression.expr {
        Expr::Select(select) => parts.push(&select.operand),
        Expr::Call(call) => parts.extend(call.target.as_deref().into_iter().chain(&call.args)),
        Expr::List(list) => parts.extend(&list.elements),
        Expr::Map(map) => map
            .entries
            .iter()
            .for_each(|entry| parts.extend(of_entry(&entry.expr))),
        Expr::Struct(structure) => structure
            .entries
            .iter()
            .for_each(|entry| parts.extend(of_entry(&entry.expr))),
        Expr::Comprehension(comprehension) => parts.extend([
            &comprehension.iter_range,
            &comprehension.accu_init,
            &comprehension.loop_cond,
            &comprehension.loop_step,
            &comprehension.result,
        ]),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
    for part in parts {
        visit(part, each);
    }
}

fn of_entry(entry: &EntryExpr) -> Vec<&Expression> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// Visits every identifier, and tells whether a macro such as `exists` binds it.
fn walk(expression: &Expression, bound: &mut Vec<String>, visit: &mut impl FnMut(&str, bool)) {
    match &expression.expr {
        Expr::Ident(name) => visit(name, bound.iter().any(|known| known == name)),
        Expr::Select(select) => walk(&select.operand, bound, visit),
        Expr::Call(call) => {
            for part in call.target.as_deref().into_iter().chain(&call.args) {
                walk(part, bound, visit);
            }
        }
        Expr::List(list) => list
            .elements
            .iter()
            .for_each(|element| walk(element, bound, visit)),
        Expr::Map(map) => map
            .entries
            .iter()
            .for_each(|entry| walk_entry(&entry.expr, bound, visit)),
        Expr::Struct(structure) => {
            structure
                .entries
                .iter()
                .for_each(|entry| walk_entry(&entry.expr, bound, visit));
        }
        Expr::Comprehension(comprehension) => {
            walk(&comprehension.iter_range, bound, visit);
            walk(&comprehension.accu_init, bound, visit);
            let outer = bound.len();
            bound.push(comprehension.iter_var.clone());
            bound.extend(comprehension.iter_var2.clone());
            bound.push(comprehension.accu_var.clone());
            for part in [
                &comprehension.loop_cond,
                &comprehension.loop_step,
                &comprehension.result,
            ] {
                walk(part, bound, visit);
            }
            bound.truncate(outer);
        }
        Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn walk_entry(entry: &EntryExpr, bound: &mut Vec<String>, visit: &mut impl FnMut(&str, bool)) {
    match entry {
        EntryExpr::StructField(field) => walk(&field.value, bound, visit),
        EntryExpr::MapEntry(entry) => {
            walk(&entry.key, bound, visit);
            walk(&entry.value, bound, visit);
        }
    }
}
