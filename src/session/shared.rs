//! Plans of repeated query texts, shared by all sessions: a dashboard asks the same again and again, on many connections, with
//! other strings.
//!
//! *Place*: `pg::simple` looks a text up by its [`crate::sql::lift`]ed form before it parses anything, and gives a plan when it has
//! seen the form before.
//!
//! *Invariants*: (1) a plan is used only with the catalog that it was made under; (2) only plans that hold nothing of a session are
//! kept, and only with parameters that have as text the value that they have as literals; (3) at most
//! `limits.query.shared_plans_max` forms are known; the least recently used one makes room.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::Catalog;
use crate::session::Prepared;
use crate::types::SqlType;

/// The plans.
#[derive(Debug)]
pub struct SharedPlans {
    forms: Mutex<Forms>,
    forms_max: usize,
}

#[derive(Debug, Default)]
struct Forms {
    entries: HashMap<Box<str>, Entry>,
    tick: u64,
}

#[derive(Debug)]
struct Entry {
    plan: Plan,
    used: u64,
}

#[derive(Clone, Debug)]
enum Plan {
    /// Asked once: not worth a second planning yet.
    Seen,
    /// It cannot be planned without its strings, or holds something of its session.
    Unfit,
    Ready(Arc<Prepared>),
}

/// What is known of a form.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing, or too little to plan it for others.
    Nothing,
    /// It comes again: [`SharedPlans::keep`] or [`SharedPlans::unfit`] should be called.
    Again,
    /// Its plan.
    Plan(Arc<Prepared>),
}

impl SharedPlans {
    /// Plans of at most so many forms.
    pub fn new(forms_max: usize) -> Self {
        Self { forms: Mutex::default(), forms_max }
    }

    /// What is known of a form under a catalog.
    pub fn find(&self, form: &str, catalog: &Arc<Catalog>) -> Found {
        let mut forms = self.forms.lock();
        forms.tick += 1;
        let tick = forms.tick;
        let Some(entry) = forms.entries.get_mut(form) else {
            self.put(&mut forms, form, Plan::Seen);
            return Found::Nothing;
        };
        entry.used = tick;
        match &entry.plan {
            Plan::Ready(prepared) if Arc::ptr_eq(&prepared.catalog, catalog) => Found::Plan(Arc::clone(prepared)),
            // The catalog has changed since.
            Plan::Ready(_) | Plan::Seen => Found::Again,
            Plan::Unfit => Found::Nothing,
        }
    }

    /// Keeps the plan of a form, when it is one that others can use.
    pub fn keep(&self, form: &str, prepared: &Arc<Prepared>) {
        let portable = prepared.bound.as_ref().is_some_and(|bound| bound.is_portable());
        let fit = portable && prepared.parameters.iter().all(is_read_alike);
        let plan = if fit { Plan::Ready(Arc::clone(prepared)) } else { Plan::Unfit };
        self.put(&mut self.forms.lock(), form, plan);
    }

    /// Remembers that a form has no plan of its own.
    pub fn unfit(&self, form: &str) {
        self.put(&mut self.forms.lock(), form, Plan::Unfit);
    }

    fn put(&self, forms: &mut Forms, form: &str, plan: Plan) {
        if self.forms_max == 0 {
            return;
        }
        if forms.entries.len() >= self.forms_max
            && !forms.entries.contains_key(form)
            && let Some(oldest) = forms.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(form, _)| form.clone())
        {
            forms.entries.remove(&oldest);
        }
        let used = forms.tick;
        forms.entries.insert(Box::from(form), Entry { plan, used });
    }
}

/// Types whose text means the same as a parameter and as a literal: numbers do not, which are compared with literals of any digits.
fn is_read_alike(sql_type: &SqlType) -> bool {
    matches!(
        sql_type,
        SqlType::Text
            | SqlType::Varchar(None)
            | SqlType::Uuid
            | SqlType::Boolean
            | SqlType::Date
            | SqlType::Timestamp
            | SqlType::Timestamptz
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_planned_when_it_comes_again() {
        let plans = SharedPlans::new(2);
        let catalog = Arc::new(Catalog::default());
        assert!(matches!(plans.find("a", &catalog), Found::Nothing));
        assert!(matches!(plans.find("a", &catalog), Found::Again));
        plans.unfit("a");
        assert!(matches!(plans.find("a", &catalog), Found::Nothing));
    }

    #[test]
    fn the_oldest_form_makes_room() {
        let plans = SharedPlans::new(2);
        let catalog = Arc::new(Catalog::default());
        for form in ["a", "b", "a", "c"] {
            plans.find(form, &catalog);
        }
        assert!(matches!(plans.find("a", &catalog), Found::Again));
        assert!(matches!(plans.find("b", &catalog), Found::Nothing));
    }
}
