//! An order that is stuck before its release, while the WAN is cut.

use super::super::watching::{await_exception, through, told_once_the_wan_is_back};
use super::Real;
use crate::common::proxy::Cut;
use serde_json::json;

#[test]
fn an_order_stuck_in_the_real_odoo_is_told_with_the_wan_cut_and_central_has_it_later() {
    let Some(real) = Real::start() else { return };
    let mut plant = real.plant("odoo-stuck", "2s", "");
    let wan = through(&plant);
    plant.gateway.run();
    plant.await_problem("");
    wan.cut(Cut::Refuse);
    let was_to_start = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(2);
    let was_to_start = was_to_start.to_string()[..19].to_owned();
    let order = real.order("P-VALVE", &json!({"origin": "STUCK", "date_start": was_to_start.replace('T', " ")}));
    let subject = format!("mrp.production/{order}");
    let opened = told_once_the_wan_is_back(&mut plant, &wan, &subject);
    assert_eq!(opened["data"]["kind"], "order-not-released");
    assert_eq!(opened["data"]["since"], format!("{was_to_start}.000000Z"));
    let made = plant.await_event("production.order", "created", |event| event["data"]["id"] == order);
    assert_eq!(
        made["time"].as_str().map(|time| &time[..19]),
        made["data"]["write_date"].as_str().map(|time| &time[..19])
    );
    // Its release ends it, and begins another: released two hours late, it has not started either.
    real.act("mrp.production", "action_confirm", order);
    let id = &opened["data"]["id"];
    plant.await_event("exception.closed", "closed", |event| event["data"]["id"] == *id);
    await_exception(&plant, "order-not-started", &subject, true);
    for stream in ["exception.opened", "exception.closed"] {
        let told = plant.events(stream).iter().filter(|event| event["data"]["id"] == *id).count();
        assert_eq!(told, 1, "{stream}");
    }
    real.act("mrp.production", "action_cancel", order);
    real.act("mrp.production", "unlink", order);
}
