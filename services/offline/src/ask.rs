//! Asks the leading controller what the registry and the nodes hold now. What it cannot be asked is
//! named, and is judged by what it recorded before.

use std::collections::BTreeSet;

use holdfast_cli_kit::cluster::Release;
use holdfast_cli_kit::leader::{Leader, LeaderArgs, Question};
use holdfast_config::HealingMode;
use kube::Client;

use crate::answers::{Answers, Basis};
use crate::inventory::Inventory;
use crate::judge::Known;
use crate::own::OwnPods;
use crate::plan::source_of;
use crate::{decide, fetch};

/// The most questions about nodes of one command.
const MAX_QUESTIONS: usize = 100_000;

/// Asks, and adds the answers to the inventory.
pub(crate) async fn ask(
    client: &Client,
    leader: &LeaderArgs,
    release: &Release,
    inventory: &mut Inventory,
) -> anyhow::Result<()> {
    let own = fetch::own_pods(client, release).await?;
    let asked = match leader.connect(client, &release.names).await {
        Ok(leader) => answers(leader, &own, inventory).await,
        Err(why) => Err(why),
    };
    match asked {
        Ok(()) => {
            inventory.basis = Basis::Asked;
            inventory.own = own.judge(&inventory.answers, inventory.lost.as_deref());
            inventory.not_judged.extend(doubts(inventory));
        }
        Err(why) => {
            inventory.answers = Answers::default();
            let line = format!("what the registry and the nodes hold now: {why}");
            inventory.not_judged.push(line);
        }
    }
    Ok(())
}

async fn answers(
    mut leader: Leader,
    own: &OwnPods,
    inventory: &mut Inventory,
) -> Result<(), String> {
    let copies: BTreeSet<String> = inventory.artifacts.iter().map(source_of).collect();
    let copies: Vec<String> = copies.into_iter().collect();
    let said = leader.held(&copies).await?.into_iter().map(Known::from);
    inventory.answers.held = copies.into_iter().zip(said).collect();
    // The images of Holdfast come first: all others need it.
    let mut questions: Vec<Question> = own.questions().into_iter().collect();
    questions.extend(decide::questions(inventory));
    if questions.len() > MAX_QUESTIONS {
        let line = format!("more than {MAX_QUESTIONS} images on nodes; -n limits the question");
        inventory.not_judged.push(line);
        questions.truncate(MAX_QUESTIONS);
    }
    let said = leader
        .starts(&questions)
        .await?
        .into_iter()
        .map(Known::from);
    inventory.answers.starts = questions.into_iter().zip(said).collect();
    Ok(())
}

/// Which parts of Holdfast may not start.
fn doubts(inventory: &Inventory) -> Vec<String> {
    let own = &inventory.own;
    let needs_controller = inventory.healing.mode == HealingMode::Heal;
    let parts = [
        ("registry", own.registry, true),
        ("controller", own.controller, needs_controller),
    ];
    let doubt = |(part, starts, is_needed): (&str, Known, bool)| match starts {
        _ if !is_needed => None,
        Known::Yes => None,
        Known::Unknown => Some(format!(
            "it is not known whether a pod of the {part} starts"
        )),
        Known::No => Some(format!(
            "no pod of the {part} starts: their nodes lack the image, or its volume is not bound"
        )),
    };
    parts.into_iter().filter_map(doubt).collect()
}
