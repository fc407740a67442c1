import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Locator, Page } from '@playwright/test';
import {
  JOB,
  askForRestore,
  backups,
  expect,
  failure,
  hold,
  jobs,
  open,
  question,
  section,
  startBackup,
  startRestore,
  test,
  untilDone,
} from '../dashboard';
import { facts, lockTable, owner, sql, turn } from '../sandbox';

// Pictures of every page and state, to look at. Nothing is compared.
test.use({ customer: 1 });
test.describe.configure({ mode: 'serial' });

const SIZES = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 900 } };

async function picture(page: Page, name: string): Promise<void> {
  for (const [size, viewport] of Object.entries(SIZES)) {
    await page.setViewportSize(viewport);
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      await page.screenshot({
        path: `../target/screenshots/${name}-${colorScheme}-${size}.png`,
        // A question is modal, and the page behind it is not what it is about.
        fullPage: (await page.getByRole('dialog').count()) === 0,
      });
    }
  }
}

test.describe('nobody', () => {
  test.use({ customer: 0 });

  test('login', async ({ page }) => {
    for (const [problem, words, name] of [
      ['', '', 'login'],
      ['?problem=slow', 'Too many tries', 'login-too-many-tries'],
      ['?problem=expired', 'Your session has ended', 'login-session-expired'],
      ['?problem=unavailable', 'Logging in does not work right now', 'login-unavailable'],
    ] as const) {
      await page.goto(`/login${problem}`);
      await expect(page.getByRole('heading', { name: 'Log in' })).toBeVisible();
      if (words) await expect(page.getByRole('alert')).toContainText(words);
      await picture(page, name);
    }
    await page.getByLabel('Email').fill(owner(1).email);
    await page.getByLabel('Password').fill('not the password');
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('alert')).toContainText('Email or password is not right');
    await picture(page, 'login-wrong');
  });
});

/** All backups, come to life. */
/** The question that an address asks. */
async function openQuestion(page: Page, address: string, title: string | RegExp): Promise<Locator> {
  await page.goto(address);
  await expect(question(page, title)).toBeVisible();
  await expect(page.locator('dialog:modal')).toBeVisible();
  return question(page, title);
}

test('nothing yet', async ({ page }) => {
  await open(page);
  await expect(section(page, 'Your backups')).toContainText('None yet');
  await picture(page, 'backups-none-yet');
});

test('activity', async ({ page }) => {
  sql(`INSERT INTO backup_audit (at, customer_id, who, name, action, source, backup_type, job_id, address) VALUES
      (1795140000000, 1, 'operator', 'alice as root', 'backup', NULL, 'files', 3, NULL),
      (1795143600000, 1, 'customer', NULL, 'login_refused', NULL, NULL, NULL, '203.0.113.9'),
      (1795143700000, 1, 'customer', NULL, 'login', NULL, NULL, NULL, '203.0.113.7'),
      (1795230000000, 1, 'customer', NULL, 'restore', 'manual', 'db', 5, '203.0.113.7'),
      (1795230100000, 1, 'customer', NULL, 'restore', 'pre-restore', 'both', 6, '203.0.113.7'),
      (1795230200000, 1, 'customer', NULL, 'cancel', NULL, 'both', 7, '203.0.113.7'),
      (1795230300000, 1, 'service', NULL, 'delete', 'manual', NULL, NULL, NULL),
      (1795230400000, 1, 'customer', NULL, 'delete', 'manual', NULL, NULL, '203.0.113.7')`);
  await page.goto('/activity');
  await expect(page.getByRole('heading', { name: 'Activity' })).toBeVisible();
  await picture(page, 'activity');
});

test.describe('an operator', () => {
  test.use({ customer: 0 });

  test('all customers', async ({ page }) => {
    await page.goto('/admin/login?problem=wrong');
    await picture(page, 'admin-login');
    await page.getByLabel('Name').fill(facts.operator.name);
    await page.getByLabel('Password').fill(facts.operator.password);
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('heading', { level: 1 })).toContainText('customer');
    await picture(page, 'admin');
    // What a bad night looks like; it is over when the picture is taken.
    sql(`INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, failure, started_at, finished_at, completed_at) VALUES
        (3, 'restore', 'both', 'failed', 'stuck', 1795140000000, 1795140000000, NOW()),
        (5, 'backup', 'both', 'failed', 'error', UNIX_TIMESTAMP() * 1000, UNIX_TIMESTAMP() * 1000, NOW());
      UPDATE customer_backups SET time = time - 60 * 3600000 WHERE customer_id = 4;
      UPDATE customers SET status = 'suspended' WHERE id = 6`);
    await page.reload();
    await expect(page.getByRole('heading', { name: 'Needs a look' })).toBeVisible();
    await picture(page, 'admin-needs-look');
    sql(`DELETE FROM customer_backup_jobs WHERE customer_id IN (3, 5);
      UPDATE customer_backups SET time = time + 60 * 3600000 WHERE customer_id = 4;
      UPDATE customers SET status = 'active' WHERE id = 6`);
  });
});

const large = (): string => join(owner(1).site, 'large.bin');

test('backups', async ({ page }) => {
  writeFileSync(large(), randomBytes(4_000_000));
  await page.goto('/backups');
  for (const [part, title, note] of [
    ['both', 'Backup of database & files', 'Before the new theme'],
    ['db', 'Backup of the database', 'Prices for the sale are in'],
    ['files', 'Backup of the files', ''],
  ] as const) {
    await startBackup(page, part, note);
    await untilDone(page, title);
  }
  await expect(backups(page, 'Your backups')).toHaveCount(3);
  await picture(page, 'done');
  await open(page);
  await picture(page, 'backups');
  await openQuestion(page, '/backups?ask=backup&type=both', 'Back up database & files?');
  await picture(page, 'ask-backup');
  await openQuestion(page, `/backups?ask=restore&id=${'0'.repeat(64)}`, 'This backup is not there any more');
  await picture(page, 'ask-gone');
});

test('one backup', async ({ page }) => {
  await page.goto('/backups');
  await backups(page, 'Your backups').last().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('link', { name: 'Delete …' })).toBeVisible();
  const address = page.url();
  await picture(page, 'details');
  for (const ask of ['restore', 'delete']) {
    await openQuestion(page, `${address}?ask=${ask}`, /this backup\?$/);
    await picture(page, `ask-${ask}`);
  }
});

test('a refusal', async ({ page, request, complaints }) => {
  const dialog = await openQuestion(page, '/backups?ask=backup&type=db', 'Back up the database?');
  const release = await lockTable(owner(1).database, 'wp_posts');
  const headers = { accept: 'application/json' };
  const begun = await request.post('/backups/create', { data: { backup_type: 'db' }, headers });
  const { job_id } = await begun.json();
  await dialog.getByRole('button', { name: 'Start the backup' }).click();
  await expect(dialog.getByRole('alert')).toBeVisible();
  complaints.splice(0);
  await picture(page, 'refused');
  await openQuestion(page, '/backups?ask=backup&type=db', 'Not right now');
  await picture(page, 'ask-not-now');
  await request.post(`/backups/jobs/${job_id}/cancel`, { data: {}, headers });
  await release();
  await open(page);
  await expect(failure(page, 'The backup was cancelled')).toBeVisible();
  await picture(page, 'cancelled');
});

test('a running restore', async ({ page }) => {
  // What did not change would be taken from the shop, and not go over the line.
  rmSync(large());
  await open(page);
  await turn('line 100000');
  await startRestore(page, backups(page, 'Your backups').last(), /The whole shop/);
  const running = section(page, 'Restore of database & files');
  await expect(running.getByRole('status')).toHaveText('Fetching the files', { timeout: JOB });
  await expect(running).toContainText(/[kM]B of .*[kM]B/);
  await picture(page, 'restoring');
  await openQuestion(page, '/backups?ask=cancel', 'Cancel the restore?');
  await page.getByRole('button', { name: 'Cancel the restore' }).click();
  await turn('line 0');
  await expect(failure(page, 'The restore was cancelled')).toBeVisible({ timeout: JOB });
});

test('a restore that is kept online, done and undone', async ({ page }) => {
  await page.goto('/backups');
  const { site } = owner(1);
  writeFileSync(join(site, 'newer.bin'), randomBytes(4_000_000));
  const dialog = await askForRestore(page, backups(page, 'Your backups').last());
  await dialog.getByLabel('Keep my shop online').check();
  await picture(page, 'ask-restore-online');
  await open(page);
  await turn('line 300000');
  await startRestore(page, backups(page, 'Your backups').last(), /Files only/);
  await expect(section(page, 'Restore of the files')).toContainText('Your shop is back online.', { timeout: JOB });
  await picture(page, 'keeping');
  await turn('line 0');
  await untilDone(page, 'Restore of the files');
  await expect(backups(page, 'Made before a restore')).toHaveCount(1);
  await picture(page, 'restored');
  await jobs(page).first().getByRole('link', { name: 'Undo this restore …' }).click();
  await expect(question(page, 'Undo the restore?')).toBeVisible();
  await picture(page, 'ask-undo');
  await open(page);
  await backups(page, 'Made before a restore').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('main')).toContainText('Restore of the files');
  await picture(page, 'details-replaced');
});

test('restores that did not end well', async ({ page }) => {
  await open(page);
  await turn('line 300000');
  writeFileSync(join(owner(1).site, 'newest.bin'), randomBytes(4_000_000));
  await startRestore(page, backups(page, 'Your backups').last(), /Files only/);
  await expect(section(page, 'Restore of the files')).toContainText('Your shop is back online.', { timeout: JOB });
  await turn('kill worker');
  await turn('line 0');
  await turn('start worker');
  await untilDone(page, 'Restore of the files');
  await expect(jobs(page).first()).toContainText('It was interrupted and finished on its own.');
  await picture(page, 'recovered');

  await turn('break customer-1');
  await startRestore(page, backups(page, 'Your backups').last(), /Database only/);
  await expect(failure(page, 'The restore needs our help')).toBeVisible({ timeout: JOB });
  await picture(page, 'stuck');
  await turn('mend customer-1');
  const undone = failure(page, 'The restore was rolled back');
  await expect(undone).toBeVisible({ timeout: JOB });
  await picture(page, 'no-longer-stuck');

  const front = join(owner(1).site, 'index.php');
  const good = readFileSync(front);
  writeFileSync(front, '<?php http_response_code(500);');
  await open(page);
  await startBackup(page, 'files', 'a front page that fails');
  await untilDone(page, 'Backup of the files');
  writeFileSync(front, good);
  await startRestore(page, backups(page, 'Your backups').first());
  await expect(failure(page, 'The restore was rolled back')).toBeVisible({ timeout: JOB });
  await picture(page, 'rolled-back');
  await page.getByRole('button', { name: 'Dismiss' }).click();
});

test('a running and a failed backup', async ({ page }) => {
  const { database, site } = owner(1);
  await open(page);
  // Nothing that is saved already: it has to go over the line.
  writeFileSync(join(site, 'new.bin'), randomBytes(4_000_000));
  await turn('line 100000');
  await startBackup(page, 'both');
  await expect(section(page, 'Backup of database & files')).toContainText(/[kM]B/, { timeout: JOB });
  await picture(page, 'running');
  await openQuestion(page, '/backups?ask=cancel', 'Cancel the backup?');
  await picture(page, 'ask-cancel');
  await open(page);
  await turn('line 0');
  await untilDone(page, 'Backup of database & files');

  sql('CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone', database);
  await startBackup(page, 'db');
  await expect(failure(page, 'The backup failed')).toBeVisible();
  await picture(page, 'failed');
  await page.getByRole('button', { name: 'Dismiss' }).click();
  await expect(failure(page, 'The backup failed')).toBeHidden();
  sql('DROP VIEW broken', database);
});

test('what is not there', async ({ page, complaints }) => {
  await page.goto(`/backups/${'0'.repeat(64)}`);
  await expect(page.getByRole('heading', { name: 'There is no such backup' })).toBeVisible();
  await picture(page, 'no-such-backup');
  await page.goto('/nothing');
  await expect(page.getByRole('heading', { name: 'There is no such page' })).toBeVisible();
  await picture(page, 'no-such-page');
  complaints.splice(0);
});

test('offline', async ({ page, context, complaints }) => {
  await page.goto('/backups');
  await page.waitForLoadState('networkidle');
  await context.setOffline(true);
  await page.evaluate(() => dispatchEvent(new Event('offline')));
  await expect(page.getByText('The connection is lost')).toBeVisible();
  await picture(page, 'offline');
  await backups(page, 'Daily backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('heading', { name: 'This page cannot be shown right now' })).toBeVisible();
  await picture(page, 'page-problem');
  await context.setOffline(false);
  complaints.splice(0);
});

test('a page on its way', async ({ page }) => {
  await open(page);
  const letGo = await hold(page, '**/api/page/backup?*');
  await backups(page, 'Daily backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('heading', { name: 'Loading …' })).toBeVisible();
  await picture(page, 'loading');
  letGo();
});

test('a wide screen', async ({ page }) => {
  await open(page);
  for (const width of [1920, 2560]) {
    await page.setViewportSize({ width, height: 1200 });
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme });
      await page.screenshot({ path: `../target/screenshots/backups-${colorScheme}-${width}.png` });
    }
  }
});

test('without the database', async ({ page, complaints }) => {
  await turn('break database');
  const answer = await page.goto('/backups');
  expect(answer?.status()).toBe(503);
  await picture(page, 'database-away');
  await turn('mend database');
  complaints.splice(0);
});
