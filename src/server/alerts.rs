//! Alerts as the system schemas show them.

use crate::alert::Alerts;
use crate::alert::ledger::Delivery;
use crate::catalog::Alert;
use crate::error::Result;
use crate::query::catalogs::alerts::{AlertRow, HistoryRow, InstanceRow, NotificationRow};

pub(super) fn alert(alerts: &Alerts, alert: &Alert) -> AlertRow {
    let shown = alerts.shown(alert);
    let progress = &shown.book.progress;
    let instance = |instance: &crate::alert::lifecycle::Instance| InstanceRow {
        key: instance.key.clone(),
        state: instance.phase.name(),
        since: instance.since,
        pending_since: instance.pending_since,
        fired_at: instance.fired.as_ref().map(|fired| fired.at),
        resolved_at: instance.resolved_at,
        window: instance.window,
        values: instance.values.clone(),
        reason: instance.reason.clone(),
        told_at: instance.told_at,
        notifications: instance.serial,
    };
    AlertRow {
        instances: shown.book.instances.values().map(instance).collect(),
        evaluations: progress.evaluations,
        evaluated_at: progress.evaluated_at,
        due_at: shown.due_at,
        evaluated_until: progress.partitions.values().copied().chain(progress.all).min(),
        took_us: shown.took_us,
        failure: shown.failure,
    }
}

pub(super) fn history(alerts: &Alerts) -> Result<Vec<HistoryRow>> {
    let row = |entry: crate::alert::ledger::Entry| HistoryRow {
        alert: entry.alert,
        instance: entry.instance,
        from: entry.from.name(),
        to: entry.to.name(),
        at: entry.at,
        window: entry.window,
        values: entry.values,
        reason: entry.reason,
        silenced: entry.silenced,
        recorded_at: entry.recorded_at,
    };
    Ok(alerts.history()?.into_iter().map(row).collect())
}

pub(super) fn notifications(alerts: &Alerts) -> Vec<NotificationRow> {
    let row = |outgoing: crate::alert::ledger::Outgoing| NotificationRow {
        message: outgoing.message.json(),
        id: outgoing.message.id,
        alert: outgoing.message.alert,
        channel: outgoing.channel,
        kind: outgoing.message.kind.name(),
        instance: outgoing.message.instance,
        state: match outgoing.delivery {
            Delivery::Pending => "pending",
            Delivery::Delivered => "delivered",
            Delivery::Dead => "dead",
        },
        attempts: outgoing.attempts,
        created_at: outgoing.created_at,
        due_at: (outgoing.delivery == Delivery::Pending).then_some(outgoing.due_at),
        done_at: outgoing.done_at,
        failure: outgoing.failure,
    };
    alerts.messages().into_iter().map(row).collect()
}
