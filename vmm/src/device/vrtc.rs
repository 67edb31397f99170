//! The real-time clock and its CMOS memory (`vrtc.c`; MC146818A data sheet).
//!
//! The clock shows 1 January 1970 until `VM_RTC_SETTIME`, and goes on with the cell's time. Interrupt flags are raised only
//! while their interrupt is enabled, and no update is ever in progress, as in FreeBSD.

use super::Refused;
use super::clock::{Countdown, Frequency};
use serde::{Deserialize, Serialize};

/// `IO_RTC`: selects a byte. Reads as 0xff.
const INDEX: u16 = 0x70;
/// The byte selected.
const DATA: u16 = 0x71;

const NS_PER_S: u64 = 1_000_000_000;
const S_PER_DAY: i64 = 86_400;

/// The bytes of the clock. Those in between are the alarm's.
const SECOND: usize = 0;
const MINUTE: usize = 2;
const HOUR: usize = 4;
const DAY_OF_WEEK: usize = 6;
const DAY_OF_MONTH: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const REG_A: usize = 10;
const REG_B: usize = 11;
const REG_C: usize = 12;
const REG_D: usize = 13;
/// `RTC_CENTURY`.
const CENTURY: usize = 0x32;

/// From here on an alarm byte matches everything.
const ALARM_ANY: u8 = 0xc0;
/// Afternoon, in the hour of a 12-hour clock.
const PM: u8 = 0x80;

/// REG_A: an update is in progress.
const A_UIP: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
/// The divider of a 32.768 kHz crystal; with any other the clock stands still.
const A_DIVIDER_ON: u8 = 0x20;
const A_RATE: u8 = 0x0f;

const B_HALT: u8 = 0x80;
const B_SQUARE_WAVE: u8 = 0x08;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;

/// Interrupt flags of REG_C, which stand where their enable bits stand in REG_B.
const C_INTERRUPT: u8 = 0x80;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;

/// REG_D: the battery is good.
const D_VALID: u8 = 0x80;

/// Seconds that a date of four digits can stand for.
const REPRESENTABLE: std::ops::Range<i64> = 0..253_402_300_800;

/// The real-time clock of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vrtc {
    index: u8,
    #[serde(with = "cmos")]
    cmos: [u8; 128],
    /// Seconds since 1970 at `base`. `None` when nobody knows: the guest has halted the clock to set it, or has set it to
    /// what is no date.
    base_time: Option<i64>,
    /// Nanoseconds.
    base: u64,
    periodic: Option<Countdown>,
}

impl Vrtc {
    /// The I/O ports of the device.
    pub const PORTS: [u16; 2] = [INDEX, DATA];

    /// `vrtc_init`: the clock goes, in BCD and 24 hours, and interrupts are off.
    #[must_use]
    pub fn new(now: u64) -> Vrtc {
        let mut cmos = [0; 128];
        cmos[REG_A] = A_DIVIDER_ON;
        cmos[REG_B] = B_24_HOURS;
        cmos[REG_D] = D_VALID;
        let mut vrtc = Vrtc { index: REG_D as u8, cmos, base_time: Some(0), base: now, periodic: None };
        vrtc.show(0);
        vrtc
    }

    /// `vrtc_reset`, when the machine is reset: interrupts are off; the clock goes on, and the memory stays.
    pub fn reset(&mut self) {
        self.cmos[REG_B] &= !(PERIODIC | ALARM | UPDATE | B_SQUARE_WAVE);
        self.cmos[REG_C] = 0;
        self.periodic = None;
    }

    /// Reads a byte from a port. Returns it, and whether IRQ 8 is to be pulsed, at the 8259s and the I/O APIC.
    ///
    /// # Errors
    /// When it is no port of the device.
    pub fn read(&mut self, port: u16, now: u64) -> Result<(u8, bool), Refused> {
        match port {
            INDEX => Ok((0xff, false)),
            DATA => {
                let irq = self.catch_up(now);
                let byte = self.cmos[usize::from(self.index)];
                if usize::from(self.index) == REG_C {
                    self.set_reg_c(0);
                }
                Ok((byte, irq))
            }
            _ => Err(Refused),
        }
    }

    /// Writes a byte to a port. Returns whether IRQ 8 is to be pulsed.
    ///
    /// # Errors
    /// When it is no port of the device, or when the clock is set to what is no date (`hw.vmm.vrtc.flag_broken_time`).
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Result<bool, Refused> {
        match port {
            INDEX => {
                self.index = value & 0x7f;
                Ok(false)
            }
            DATA => {
                let irq = self.catch_up(now);
                Ok(self.write_cmos(value, now)? || irq)
            }
            _ => Err(Refused),
        }
    }

    /// `VM_RTC_READ`: reads a byte of the memory, the clock included.
    ///
    /// # Errors
    /// When there is no such byte (`EINVAL`).
    pub fn nvram_read(&mut self, offset: i32, now: u64) -> Result<u8, Refused> {
        let offset = usize::try_from(offset).ok().filter(|&offset| offset < self.cmos.len()).ok_or(Refused)?;
        if let (Some(time), _) = self.current(now)
            && !self.halted()
        {
            self.show(time);
        }
        Ok(self.cmos[offset])
    }

    /// `VM_RTC_WRITE`: writes a byte of the memory, the clock excluded.
    ///
    /// # Errors
    /// When there is no such byte, or it is the clock's (`EINVAL`).
    pub fn nvram_write(&mut self, offset: i32, value: u8) -> Result<(), Refused> {
        match usize::try_from(offset) {
            Ok(offset) if (REG_D + 1..self.cmos.len()).contains(&offset) && offset != CENTURY => {
                self.cmos[offset] = value;
                Ok(())
            }
            _ => Err(Refused),
        }
    }

    /// `VM_RTC_SETTIME`: sets the clock, in seconds since 1970. Returns whether IRQ 8 is to be pulsed. A time that has no
    /// date of four digits stops the clock.
    ///
    /// # Errors
    /// While the guest has halted the clock (`EBUSY`).
    pub fn set_time(&mut self, secs: i64, now: u64) -> Result<bool, Refused> {
        match Some(secs).filter(|secs| REPRESENTABLE.contains(secs)) {
            Some(_) if self.halted() => Err(Refused),
            time => Ok(self.update(time, now)),
        }
    }

    /// `VM_RTC_GETTIME`: the clock, in seconds since 1970; −1 when nobody knows.
    #[must_use]
    pub fn get_time(&self, now: u64) -> i64 {
        self.current(now).0.unwrap_or(-1)
    }

    /// When an interrupt may be due, in nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        // After the last second that has a date the clock stands still.
        let goes_on = self.ticking() && self.base_time.is_some_and(|time| time < REPRESENTABLE.end - 1);
        let second = (self.enabled(ALARM | UPDATE) && goes_on).then(|| self.base.saturating_add(NS_PER_S));
        self.periodic.map(Countdown::deadline).into_iter().chain(second).min()
    }

    /// Does what is due. Returns whether IRQ 8 is to be pulsed, at the 8259s and the I/O APIC.
    pub fn advance(&mut self, now: u64) -> bool {
        let mut irq = false;
        if let Some(countdown) = self.periodic.filter(|countdown| countdown.deadline() <= now) {
            self.periodic = Some(countdown.next(1, now));
            irq = self.set_reg_c(self.cmos[REG_C] | PERIODIC);
        }
        if self.enabled(ALARM | UPDATE) {
            irq |= self.catch_up(now);
        }
        irq
    }

    fn halted(&self) -> bool {
        self.cmos[REG_B] & B_HALT != 0
    }

    fn enabled(&self, interrupts: u8) -> bool {
        self.cmos[REG_B] & interrupts != 0
    }

    fn divider_on(&self) -> bool {
        self.cmos[REG_A] & A_DIVIDER == A_DIVIDER_ON
    }

    /// Whether the clock goes.
    fn ticking(&self) -> bool {
        self.divider_on() && !self.halted() && self.base_time.is_some()
    }

    /// The time now, and when its second began.
    fn current(&self, now: u64) -> (Option<i64>, u64) {
        if !self.ticking() {
            return (self.base_time, self.base);
        }
        let elapsed = now.saturating_sub(self.base) / NS_PER_S;
        let time = self.base_time.map(|time| time.saturating_add_unsigned(elapsed).min(REPRESENTABLE.end - 1));
        (time, self.base + elapsed * NS_PER_S)
    }

    /// Brings the clock up to now. Returns whether IRQ 8 is to be pulsed.
    fn catch_up(&mut self, now: u64) -> bool {
        let (time, base) = self.current(now);
        let irq = self.update(time, base);
        if let Some(time) = time
            && !self.halted()
        {
            self.show(time);
        }
        irq
    }

    /// `vrtc_time_update`: sets the clock to `time` as of `base`. Alarms of the seconds passed on the way go off. Returns
    /// whether IRQ 8 is to be pulsed.
    fn update(&mut self, time: Option<i64>, base: u64) -> bool {
        let last = std::mem::replace(&mut self.base_time, time);
        let Some(time) = time.filter(|_| last != time) else {
            return false;
        };
        self.base = base;
        let mut irq = false;
        if self.enabled(ALARM) {
            // An alarm that does not go off within a day never does.
            let first = last.map_or(time, |last| last + 1).max(time - S_PER_DAY).min(time);
            if self.next_alarm(first).is_some_and(|alarm| alarm <= time) {
                irq |= self.set_reg_c(self.cmos[REG_C] | ALARM);
            }
        }
        if self.enabled(UPDATE) {
            irq |= self.set_reg_c(self.cmos[REG_C] | UPDATE);
        }
        irq
    }

    /// The first second from `first` on at which the alarm goes off, if there is one at all: one whose hour, minute and second
    /// are each shown as the alarm has it.
    fn next_alarm(&self, first: i64) -> Option<i64> {
        let is_set = |shown: usize, byte: u8| {
            let alarm = self.cmos[shown + 1];
            alarm >= ALARM_ANY || alarm == byte
        };
        // The hours, minutes and seconds of two days, but for those that are over before `first`.
        let midnight = first - first.rem_euclid(S_PER_DAY);
        let hours = (0..48).map(|hour| (hour % 24, midnight + hour * 3600));
        let minutes = (0..60).filter(|&minute| is_set(MINUTE, self.encode(minute)));
        let seconds = (0..60).filter(|&second| is_set(SECOND, self.encode(second)));
        hours
            .filter(|&(hour, at)| at + 3600 > first && is_set(HOUR, self.shown_hour(hour as u8)))
            .flat_map(|(_, at)| minutes.clone().map(move |minute| at + i64::from(minute) * 60))
            .filter(|at| at + 60 > first)
            .flat_map(|at| seconds.clone().map(move |second| at + i64::from(second)))
            .find(|&at| at >= first)
    }

    /// Sets the interrupt flags. Returns whether the interrupt line was raised by it.
    fn set_reg_c(&mut self, flags: u8) -> bool {
        let flags = flags & (PERIODIC | ALARM | UPDATE);
        let raised = self.cmos[REG_C] & C_INTERRUPT != 0;
        let raises = flags & self.cmos[REG_B] != 0;
        self.cmos[REG_C] = flags | if raises { C_INTERRUPT } else { 0 };
        raises && !raised
    }

    fn write_cmos(&mut self, value: u8, now: u64) -> Result<bool, Refused> {
        match usize::from(self.index) {
            REG_A => {
                self.write_reg_a(value, now);
                Ok(false)
            }
            REG_B => self.write_reg_b(value, now),
            // Read-only.
            REG_C | REG_D => Ok(false),
            SECOND => {
                self.cmos[SECOND] = value & 0x7f;
                Ok(false)
            }
            // Some guests set the century without halting the clock.
            CENTURY if !self.halted() => {
                self.cmos[CENTURY] = value;
                let time = self.shown();
                let irq = self.update(time, now);
                if time.is_some() { Ok(irq) } else { Err(Refused) }
            }
            offset => {
                self.cmos[offset] = value;
                Ok(false)
            }
        }
    }

    fn write_reg_a(&mut self, value: u8, now: u64) {
        let rate = self.periodic_rate();
        let was_on = self.divider_on();
        self.cmos[REG_A] = value & !A_UIP;
        if !was_on && self.divider_on() {
            // The clock stood still while the divider was held in reset.
            self.base = now;
        }
        self.restart_periodic(rate, now);
    }

    fn write_reg_b(&mut self, value: u8, now: u64) -> Result<bool, Refused> {
        let rate = self.periodic_rate();
        let changed = self.cmos[REG_B] ^ value;
        self.cmos[REG_B] = value;
        let mut irq = false;
        if changed & B_HALT != 0 {
            if value & B_HALT == 0 {
                let time = self.shown();
                if time.is_none() {
                    return Err(Refused);
                }
                irq |= self.update(time, now);
            } else {
                // The guest owns the clock from here, as it stands.
                if let Some(time) = self.base_time {
                    self.show(time);
                }
                self.base_time = None;
                self.cmos[REG_B] &= !UPDATE;
            }
        }
        if changed & (PERIODIC | ALARM | UPDATE) != 0 {
            irq |= self.set_reg_c(self.cmos[REG_C]);
        }
        self.restart_periodic(rate, now);
        Ok(irq)
    }

    /// How often the periodic interrupt comes, in hertz.
    fn periodic_rate(&self) -> Option<u64> {
        if !self.enabled(PERIODIC) || !self.divider_on() {
            return None;
        }
        match self.cmos[REG_A] & A_RATE {
            0 => None,
            1 => Some(256),
            2 => Some(128),
            select => Some(32_768 >> (select - 1)),
        }
    }

    fn restart_periodic(&mut self, last_rate: Option<u64>, now: u64) {
        let rate = self.periodic_rate();
        if rate != last_rate {
            self.periodic = rate.map(|hz| Countdown::new(Frequency::hz(hz), 1, now));
        }
    }

    /// `secs_to_rtc`: shows a time in the bytes of the clock.
    fn show(&mut self, time: i64) {
        let date = Date::from_days(time.div_euclid(S_PER_DAY));
        let second = time.rem_euclid(S_PER_DAY);
        self.cmos[SECOND] = self.encode((second % 60) as u8);
        self.cmos[MINUTE] = self.encode((second / 60 % 60) as u8);
        self.cmos[HOUR] = self.shown_hour((second / 3600) as u8);
        self.cmos[DAY_OF_WEEK] = self.encode(date.day_of_week() + 1);
        self.cmos[DAY_OF_MONTH] = self.encode(date.day);
        self.cmos[MONTH] = self.encode(date.month);
        self.cmos[YEAR] = self.encode((date.year % 100) as u8);
        self.cmos[CENTURY] = self.encode((date.year / 100) as u8);
    }

    /// How an hour is shown.
    fn shown_hour(&self, hour: u8) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            self.encode(hour)
        } else {
            self.encode((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 }
        }
    }

    /// `rtc_to_secs`: the time that the bytes of the clock show, if they do. The day of the week is not looked at: some
    /// guests do not set it.
    fn shown(&self) -> Option<i64> {
        let field = |offset: usize| self.decode(self.cmos[offset]);
        let hour = if self.cmos[REG_B] & B_24_HOURS != 0 {
            field(HOUR)?
        } else {
            let hour = self.decode(self.cmos[HOUR] & !PM).filter(|hour| (1..=12).contains(hour))?;
            hour % 12 + if self.cmos[HOUR] & PM != 0 { 12 } else { 0 }
        };
        let (second, minute, year) = (field(SECOND)?, field(MINUTE)?, field(YEAR)?);
        if second > 59 || minute > 59 || hour > 23 || year > 99 {
            return None;
        }
        let year = i64::from(field(CENTURY)?) * 100 + i64::from(year);
        let date = Date { year, month: field(MONTH)?, day: field(DAY_OF_MONTH)? };
        Some(date.to_days()? * S_PER_DAY + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.cmos[REG_B] & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> Option<u8> {
        if self.cmos[REG_B] & B_BINARY != 0 {
            return Some(value);
        }
        let (tens, ones) = (value >> 4, value & 0xf);
        (tens <= 9 && ones <= 9).then_some(tens * 10 + ones)
    }
}

/// A day of the Gregorian calendar, from 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    /// 1 to 12.
    month: u8,
    /// 1 to 31.
    day: u8,
}

impl Date {
    /// From the number of days since 1 January 1970.
    fn from_days(days: i64) -> Date {
        let mut day = days;
        // An estimate that is never too high and at most a year too low.
        let mut year = (1970 + days / 366).max(1970);
        day -= days_before_year(year);
        while day >= days_in_year(year) {
            day -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        Date { year, month, day: day as u8 + 1 }
    }

    /// The number of days since 1 January 1970, if there is such a day.
    fn to_days(self) -> Option<i64> {
        let Date { year, month, day } = self;
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
            return None;
        }
        if !(1..=days_in_month(year, month)).contains(&i64::from(day)) {
            return None;
        }
        let months: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
        Some(days_before_year(year) + months + i64::from(day) - 1)
    }

    /// 0 for Sunday.
    fn day_of_week(self) -> u8 {
        // 1 January 1970 was a Thursday.
        self.to_days().map_or(0, |days| ((days + 4) % 7) as u8)
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_year(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: i64, month: u8) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1 January 1970 to 1 January of `year`.
fn days_before_year(year: i64) -> i64 {
    let leap_years_before = |year: i64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    (year - 1970) * 365 + leap_years_before(year) - leap_years_before(1970)
}

/// How a snapshot keeps the bytes: as a list.
mod cmos {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 128], serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 128], D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        <[u8; 128]>::try_from(bytes).map_err(|bytes| D::Error::invalid_length(bytes.len(), &"128 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = NS_PER_S;
    /// 31 December 1999, 23:59:58.
    const MILLENNIUM: i64 = 946_684_798;

    fn get(vrtc: &mut Vrtc, offset: usize, now: u64) -> u8 {
        vrtc.write(INDEX, offset as u8, now).expect("the index takes everything");
        vrtc.read(DATA, now).expect("every byte can be read").0
    }

    fn set(vrtc: &mut Vrtc, offset: usize, value: u8, now: u64) -> Result<bool, Refused> {
        vrtc.write(INDEX, offset as u8, now)?;
        vrtc.write(DATA, value, now)
    }

    /// Century, year, month, day, hour, minute, second, day of the week.
    fn shown(vrtc: &mut Vrtc, now: u64) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOUR, MINUTE, SECOND, DAY_OF_WEEK].map(|offset| get(vrtc, offset, now))
    }

    fn at(time: i64) -> Vrtc {
        let mut vrtc = Vrtc::new(0);
        assert_eq!(vrtc.set_time(time, 0), Ok(false));
        vrtc
    }

    #[test]
    fn begins_in_1970() {
        let mut vrtc = Vrtc::new(5 * S);
        assert_eq!(shown(&mut vrtc, 5 * S), [0x19, 0x70, 1, 1, 0, 0, 0, 5]);
        assert_eq!(vrtc.get_time(5 * S), 0);
        assert_eq!([REG_A, REG_B, REG_C, REG_D].map(|reg| get(&mut vrtc, reg, 5 * S)), [0x20, 0x02, 0, 0x80]);
        assert_eq!(vrtc.read(INDEX, 0), Ok((0xff, false)));
        assert_eq!((vrtc.read(0x72, 0), vrtc.write(0x72, 0, 0)), (Err(Refused), Err(Refused)));
    }

    #[test]
    fn goes_on_with_time() {
        let mut vrtc = at(MILLENNIUM);
        assert_eq!(shown(&mut vrtc, 0), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58, 6]);
        assert_eq!(shown(&mut vrtc, S * 3 / 2), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6]);
        assert_eq!(shown(&mut vrtc, S * 2), [0x20, 0, 1, 1, 0, 0, 0, 7], "looking does not lose half a second");
        assert_eq!(vrtc.get_time(S * 2), MILLENNIUM + 2);
    }

    #[test]
    fn formats() {
        for (hour, twelve) in [(0, 12), (1, 1), (11, 11), (12, PM | 12), (13, PM | 1), (23, PM | 11)] {
            let mut vrtc = at(hour * 3600);
            set(&mut vrtc, REG_B, B_BINARY, 0).expect("REG_B can be written");
            assert_eq!(get(&mut vrtc, HOUR, 0), twelve, "{hour}:00, 12 hours");
            set(&mut vrtc, REG_B, B_BINARY | B_24_HOURS, 0).expect("REG_B can be written");
            assert_eq!(get(&mut vrtc, HOUR, 0), hour as u8);
        }
        let mut vrtc = at(MILLENNIUM);
        set(&mut vrtc, REG_B, B_BINARY | B_24_HOURS, 0).expect("REG_B can be written");
        assert_eq!(shown(&mut vrtc, 0), [19, 99, 12, 31, 23, 59, 58, 6]);
    }

    #[test]
    fn is_set_while_halted() {
        let mut vrtc = at(MILLENNIUM);
        set(&mut vrtc, REG_B, B_HALT | B_24_HOURS, 0).expect("REG_B can be written");
        assert_eq!(vrtc.get_time(9 * S), -1);
        assert_eq!(vrtc.set_time(0, 9 * S), Err(Refused));
        assert_eq!(get(&mut vrtc, SECOND, 9 * S), 0x58, "it stands still");
        for (offset, value) in [
            (CENTURY, 0x20),
            (YEAR, 0x24),
            (MONTH, 0x02),
            (DAY_OF_MONTH, 0x29),
            (HOUR, 0x12),
            (MINUTE, 0),
            (SECOND, 0x30),
        ] {
            assert_eq!(set(&mut vrtc, offset, value, 9 * S), Ok(false));
        }
        assert_eq!(set(&mut vrtc, REG_B, B_24_HOURS, 10 * S), Ok(false));
        assert_eq!(vrtc.get_time(10 * S), 1_709_208_030);
        assert_eq!(shown(&mut vrtc, 11 * S), [0x20, 0x24, 2, 0x29, 0x12, 0, 0x31, 5]);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for (offset, value) in [
            (SECOND, 0x60),
            (MINUTE, 0x0a),
            (HOUR, 0x24),
            (DAY_OF_MONTH, 0x32),
            (DAY_OF_MONTH, 0),
            (MONTH, 0x13),
            (YEAR, 0xa0),
            (CENTURY, 0x18),
        ] {
            let mut vrtc = at(MILLENNIUM);
            set(&mut vrtc, REG_B, B_HALT | B_24_HOURS, 0).expect("REG_B can be written");
            set(&mut vrtc, offset, value, 0).expect("nothing is looked at yet");
            assert_eq!(set(&mut vrtc, REG_B, B_24_HOURS, 0), Err(Refused), "byte {offset} = {value:#x}");
        }
        assert_eq!(set(&mut at(MILLENNIUM), CENTURY, 0x18, 0), Err(Refused));
        assert_eq!(set(&mut at(MILLENNIUM), CENTURY, 0x20, 0), Ok(false));
        assert_eq!(at(-1).get_time(0), -1);
        assert_eq!(at(i64::MAX).get_time(0), -1);
    }

    #[test]
    fn the_divider_holds_the_clock() {
        let mut vrtc = at(100);
        set(&mut vrtc, REG_A, 0x70, 5 * S).expect("REG_A can be written");
        assert_eq!(vrtc.get_time(9 * S), 105);
        set(&mut vrtc, REG_A, 0xa6, 10 * S).expect("REG_A can be written");
        assert_eq!(vrtc.get_time(12 * S), 107);
        assert_eq!(get(&mut vrtc, REG_A, 12 * S), 0x26, "no update is in progress");
    }

    #[test]
    fn memory() {
        let mut vrtc = Vrtc::new(0);
        assert_eq!(set(&mut vrtc, 0x0f, 0x0a, 0), Ok(false));
        assert_eq!(vrtc.nvram_read(0x0f, 0), Ok(0x0a), "the shutdown code of a warm reset");
        assert_eq!(vrtc.nvram_write(0x5b, 0x7f), Ok(()));
        assert_eq!(get(&mut vrtc, 0x5b, 0), 0x7f);
        for offset in (0..14).chain([CENTURY as i32, 128, -1]) {
            assert_eq!(vrtc.nvram_write(offset, 0), Err(Refused));
        }
        assert_eq!(vrtc.nvram_read(SECOND as i32, 7 * S), Ok(7));
        assert_eq!((vrtc.nvram_read(128, 0), vrtc.nvram_read(-1, 0)), (Err(Refused), Err(Refused)));
        set(&mut vrtc, REG_B, B_24_HOURS | PERIODIC | ALARM | UPDATE, 0).expect("REG_B can be written");
        vrtc.reset();
        assert_eq!(vrtc.next_deadline(), None);
        assert_eq!((get(&mut vrtc, REG_B, 0), get(&mut vrtc, 0x0f, 0)), (B_24_HOURS, 0x0a));
    }

    #[test]
    fn periodic_interrupts() {
        let mut vrtc = Vrtc::new(0);
        set(&mut vrtc, REG_A, 0x26, 0).expect("REG_A can be written");
        assert_eq!(vrtc.next_deadline(), None);
        set(&mut vrtc, REG_B, B_24_HOURS | PERIODIC, 0).expect("REG_B can be written");
        assert_eq!(vrtc.next_deadline(), Some(976_563), "1024 Hz");
        assert!(!vrtc.advance(976_562));
        assert!(vrtc.advance(976_563));
        assert_eq!(vrtc.next_deadline(), Some(1_953_125));
        assert!(!vrtc.advance(1_953_125), "the line is up until REG_C is read");
        assert_eq!(get(&mut vrtc, REG_C, 1_953_125), C_INTERRUPT | PERIODIC);
        assert_eq!(get(&mut vrtc, REG_C, 1_953_125), 0);
        assert!(vrtc.advance(2_929_688));
        for (select, deadline) in [(0, None), (1, Some(3_906_250)), (3, Some(122_071)), (15, Some(500_000_000))] {
            let mut vrtc = Vrtc::new(0);
            set(&mut vrtc, REG_B, B_24_HOURS | PERIODIC, 0).expect("REG_B can be written");
            set(&mut vrtc, REG_A, 0x20 | select, 0).expect("REG_A can be written");
            assert_eq!(vrtc.next_deadline(), deadline, "rate {select}");
        }
    }

    #[test]
    fn update_interrupts_come_each_second() {
        let mut vrtc = Vrtc::new(0);
        set(&mut vrtc, REG_B, B_24_HOURS | UPDATE, S / 4).expect("REG_B can be written");
        assert_eq!(vrtc.next_deadline(), Some(S));
        assert!(vrtc.advance(S + 10));
        assert_eq!(vrtc.next_deadline(), Some(2 * S));
        assert_eq!(get(&mut vrtc, REG_C, S + 10), C_INTERRUPT | UPDATE);
        set(&mut vrtc, REG_B, B_HALT | B_24_HOURS | UPDATE, S + 10).expect("REG_B can be written");
        assert_eq!(vrtc.next_deadline(), None);
        assert_eq!(get(&mut vrtc, REG_B, S + 10), B_HALT | B_24_HOURS, "halting disables the interrupt");
    }

    #[test]
    fn alarms() {
        let mut vrtc = at(MILLENNIUM);
        for (offset, alarm) in [(SECOND + 1, 0x01), (MINUTE + 1, 0x00), (HOUR + 1, 0xff)] {
            set(&mut vrtc, offset, alarm, 0).expect("alarms can be written");
        }
        set(&mut vrtc, REG_B, B_24_HOURS | ALARM, 0).expect("REG_B can be written");
        assert!(!vrtc.advance(S) && !vrtc.advance(2 * S));
        assert!(vrtc.advance(3 * S));
        assert_eq!(get(&mut vrtc, REG_C, 3 * S), C_INTERRUPT | ALARM);
        assert!(!vrtc.advance(4 * S));
        assert!(vrtc.advance((3 + 3600) * S + S), "an hour later, seen a second late");
        get(&mut vrtc, REG_C, 3604 * S);
        assert_eq!(vrtc.set_time(MILLENNIUM + 1_000_000_000, 3604 * S), Ok(true), "a leap over many alarms");
        get(&mut vrtc, REG_C, 3604 * S);
        assert_eq!(vrtc.set_time(MILLENNIUM, 3604 * S), Ok(false), "back in time");
    }

    #[test]
    fn after_the_last_second_that_has_a_date_nothing_is_due() {
        let mut vrtc = at(REPRESENTABLE.end - 2);
        set(&mut vrtc, REG_B, B_24_HOURS | UPDATE, 0).expect("REG_B can be written");
        assert!(vrtc.advance(S), "the last second");
        assert_eq!(vrtc.next_deadline(), None);
        assert!(!vrtc.advance(100 * S));
        assert_eq!(vrtc.get_time(100 * S), REPRESENTABLE.end - 1);
    }

    #[test]
    fn calendar() {
        for (days, date) in
            [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (47_540, (2100, 2, 28)), (47_541, (2100, 3, 1))]
        {
            let (year, month, day) = date;
            assert_eq!(Date::from_days(days), Date { year, month, day });
        }
        assert_eq!(Date::from_days(REPRESENTABLE.end / S_PER_DAY - 1), Date { year: 9999, month: 12, day: 31 });
        assert_eq!(Date { year: 2100, month: 2, day: 29 }.to_days(), None);
    }

    proptest! {
        /// Looked at second by second, the first alarm is the same.
        #[test]
        fn the_next_alarm_is_the_first_second_that_shows_it(
            first in 0..REPRESENTABLE.end - 2 * S_PER_DAY,
            alarm: [u8; 3],
            flags in prop_oneof![Just(0), Just(B_24_HOURS), Just(B_BINARY), Just(B_24_HOURS | B_BINARY)],
        ) {
            let mut vrtc = at(0);
            vrtc.cmos[REG_B] = flags;
            for (offset, byte) in [SECOND, MINUTE, HOUR].into_iter().zip(alarm) {
                vrtc.cmos[offset + 1] = if byte & 1 == 0 { 0xff } else { byte >> 2 };
            }
            let found = vrtc.next_alarm(first);
            let by_hand = (first..first + S_PER_DAY).find(|&second| {
                vrtc.show(second);
                let set = |shown: usize| vrtc.cmos[shown + 1] >= ALARM_ANY || vrtc.cmos[shown + 1] == vrtc.cmos[shown];
                set(SECOND) && set(MINUTE) && set(HOUR)
            });
            prop_assert_eq!(found, by_hand);
        }

        #[test]
        fn every_day_has_its_date(days in 0..REPRESENTABLE.end / S_PER_DAY - 1) {
            let (date, next) = (Date::from_days(days), Date::from_days(days + 1));
            prop_assert_eq!(date.to_days(), Some(days));
            prop_assert_eq!(next.day_of_week(), (date.day_of_week() + 1) % 7);
            let same_month = Date { day: date.day + 1, ..date };
            let next_month = Date { month: date.month % 12 + 1, day: 1, year: date.year + i64::from(date.month / 12) };
            prop_assert!(next == same_month || next == next_month);
        }

        /// What the clock shows in any format is what it is set to when it is set from that.
        #[test]
        fn showing_and_setting_are_inverse(time in REPRESENTABLE, format in 0_u8..4) {
            let mut vrtc = at(time);
            let format = format << 1;
            set(&mut vrtc, REG_B, format, 0).expect("REG_B can be written");
            set(&mut vrtc, REG_B, format | B_HALT, 0).expect("REG_B can be written");
            set(&mut vrtc, REG_B, format, 0).expect("what the clock shows is a date");
            prop_assert_eq!(vrtc.get_time(0), time);
        }

        #[test]
        fn any_sequence_is_answered(accesses: Vec<(bool, u8, u8, u32)>) {
            let (mut vrtc, mut now) = (Vrtc::new(0), 0);
            for (reads, offset, value, step) in accesses {
                now += u64::from(step);
                if reads {
                    get(&mut vrtc, offset.into(), now);
                } else {
                    let _ = set(&mut vrtc, offset.into(), value, now);
                }
                vrtc.advance(now);
                prop_assert!(vrtc.next_deadline().is_none_or(|deadline| deadline > now));
            }
        }
    }
}
