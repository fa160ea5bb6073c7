//! Rewrites `a.?b` as `a[?"b"]`, which means the same, because the evaluator fails on the first
//! form if the field is absent.

use kube_cel::cel::common::ast::operators::{OPT_INDEX, OPT_SELECT};
use kube_cel::cel::common::ast::{EntryExpr, Expr};
use kube_cel::cel::parser::Expression;

pub(crate) fn select_by_index(expression: &mut Expression) {
    match &mut expression.expr {
        Expr::Call(call) => {
            if call.func_name == OPT_SELECT {
                OPT_INDEX.clone_into(&mut call.func_name);
            }
            for part in call.target.as_deref_mut().into_iter().chain(&mut call.args) {
                select_by_index(part);
            }
        }
        Expr::Select(select) => select_by_index(&mut select.operand),
        Expr::List(list) => list.elements.iter_mut().for_each(select_by_index),
        Expr::Map(map) => map
            .entries
            .iter_mut()
            .for_each(|entry| in_entry(&mut entry.expr)),
        Expr::Struct(structure) => structure
            .entries
            .iter_mut()
            .for_each(|entry| in_entry(&mut entry.expr)),
        Expr::Comprehension(comprehension) => {
            let comprehension = comprehension.as_mut();
            for part in [
                &mut comprehension.iter_range,
                &mut comprehension.accu_init,
                &mut comprehension.loop_cond,
                &mut comprehension.loop_step,
                &mut comprehension.result,
            ] {
                select_by_index(part);
            }
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn in_entry(entry: &mut EntryExpr) {
    match entry {
        EntryExpr::StructField(field) => select_by_index(&mut field.value),
        EntryExpr::MapEntry(entry) => {
            select_by_index(&mut entry.key);
            select_by_index(&mut entry.value);
        }
    }
}
