import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JOB, backups, expect, failure, jobs, question, section, test } from '../dashboard';
import { lockTable, owner, sql } from '../sandbox';
import type { Locator, Page } from '@playwright/test';

// Nothing of this needs JavaScript.
test.use({ javaScriptEnabled: false });
test.describe.configure({ mode: 'serial' });

const CHOICE = { both: /^Database & files/, db: /^Database only/, files: /^Files only/ };

async function logIn(page: Page): Promise<void> {
  await page.goto('/login');
  await page.getByLabel('Email').fill(owner(5).email);
  await page.getByLabel('Password').fill(owner(5).password);
  await page.getByRole('button', { name: 'Log in' }).click();
  await expect(page).toHaveURL(/\/backups$/);
}

/** The page loads itself again while a job runs. */
async function untilDone(page: Page, title: string): Promise<void> {
  await expect(jobs(page).first()).toContainText(title, { timeout: JOB });
  await expect(jobs(page).first()).toContainText('Done');
}

test('each type is made and watched to its end', async ({ page }) => {
  await logIn(page);
  for (const [part, title] of [
    ['both', 'Backup of database & files'],
    ['db', 'Backup of the database'],
    ['files', 'Backup of the files'],
  ] as const) {
    await section(page, 'Make a backup').getByRole('link', { name: CHOICE[part] }).click();
    const dialog = question(page, /^Back up/);
    await dialog.getByLabel('Note').fill(`plain ${part}`);
    await dialog.getByRole('button', { name: 'Start the backup' }).click();
    await expect(page.getByRole('status').filter({ hasText: 'Your backup is queued' })).toBeVisible();
    await untilDone(page, title);
    await expect(backups(page, 'Your backups').first()).toContainText(`plain ${part}`);
  }
});

/** Without scripts a question is a part of the page. */
async function startRestore(page: Page, backup: Locator, choice: RegExp): Promise<void> {
  await backup.getByRole('link', { name: /^Restore/ }).click();
  const dialog = question(page, 'Restore this backup?');
  await dialog.getByRole('radio', { name: choice }).check();
  await dialog.getByLabel('to confirm').fill('RESTORE');
  await dialog.getByRole('button', { name: 'Restore now' }).click();
  await expect(page.getByRole('status').filter({ hasText: 'Your restore is queued' })).toBeVisible();
}

test('a wrong confirmation is refused in a sentence, and nothing happens', async ({ page }) => {
  await logIn(page);
  await backups(page, 'Your backups').last().getByRole('link', { name: /^Restore/ }).click();
  const dialog = question(page, 'Restore this backup?');
  await dialog.getByLabel('to confirm').fill('restore');
  await dialog.getByRole('button', { name: 'Restore now' }).click();
  // So far it is the browser that asks for capital letters; some do not.
  await expect(dialog).toBeVisible();
  await dialog.locator('form').evaluate((form: HTMLFormElement) => (form.noValidate = true));
  await dialog.getByRole('button', { name: 'Restore now' }).click();
  await expect(page.getByRole('alert')).toContainText('please type RESTORE in capital letters');
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible();
  await page.goto('/backups');
  await expect(page.getByRole('alert')).toHaveCount(0);
  await expect(jobs(page).filter({ hasText: 'Restore' })).toHaveCount(0);
});

test('the database, the files, and both come back', async ({ page }) => {
  const { database, shop, site } = owner(5);
  const homepage = async () => (await fetch(`${shop}/`)).text();
  const wreckDatabase = () => sql("UPDATE wp_options SET option_value = 'Hacked' WHERE option_name = 'blogname'", database);
  const wreckFiles = () => writeFileSync(join(site, 'index.php'), '<?php echo "defaced";');
  const whole = backups(page, 'Your backups').last();
  await logIn(page);

  wreckDatabase();
  expect(await homepage()).toContain('<title>Hacked');
  await startRestore(page, whole, /Database only/);
  await untilDone(page, 'Restore of the database');
  expect(await homepage()).toContain('<title>Shop 5');

  wreckFiles();
  expect(await homepage()).toContain('defaced');
  await startRestore(page, whole, /Files only/);
  await untilDone(page, 'Restore of the files');
  expect(await homepage()).toContain('<title>Shop 5');

  wreckDatabase();
  wreckFiles();
  await startRestore(page, whole, /The whole shop/);
  await untilDone(page, 'Restore of database & files');
  expect(await homepage()).toContain('<title>Shop 5');

  wreckDatabase();
  wreckFiles();
  expect(await homepage()).toContain('defaced');
  await startRestore(page, backups(page, 'Daily backups').nth(1), /The whole shop/);
  // That job was done before, too: of this one the page says so.
  await expect(page.getByRole('status').filter({ hasText: 'Your shop is restored and open again.' })).toBeVisible({ timeout: JOB });
  await untilDone(page, 'Restore of database & files');
  expect(await homepage()).toContain('<title>Shop 5');
});

test('a restore is undone, and the order of just before it is there again', async ({ page }) => {
  const { database } = owner(5);
  const orders = () => sql("SELECT COUNT(*) FROM shop_orders WHERE token = 'plain'", database);
  const told = page.getByRole('status').filter({ hasText: 'Your shop is restored and open again.' });
  await logIn(page);
  sql("INSERT INTO shop_orders (placed, total, token) VALUES (NOW(), 5, 'plain')", database);
  await startRestore(page, backups(page, 'Your backups').last(), /Database only/);
  await expect(told).toBeVisible({ timeout: JOB });
  expect(orders()).toBe('0\n');

  await told.getByRole('link', { name: 'Undo this restore …' }).click();
  const dialog = question(page, 'Undo the restore?');
  await dialog.getByLabel('to confirm').fill('RESTORE');
  await dialog.getByRole('button', { name: 'Undo the restore' }).click();
  await expect(told).toBeVisible({ timeout: JOB });
  expect(orders()).toBe('1\n');
});

test('the page says when the job is done that it was watching', async ({ page }) => {
  await logIn(page);
  const release = await lockTable(owner(5).database, 'wp_posts');
  await section(page, 'Make a backup').getByRole('link', { name: CHOICE.db }).click();
  await question(page, /^Back up/).getByRole('button', { name: 'Start the backup' }).click();
  await expect(section(page, 'Backup of the database').getByRole('progressbar')).toBeVisible();
  await release();
  const told = page.getByRole('status').filter({ hasText: 'Your backup is done.' });
  await expect(told).toBeVisible({ timeout: JOB });
  await page.goto('/backups');
  await expect(told).toHaveCount(0);
});

test('a wrong password leaves the address where it was typed', async ({ page }) => {
  await page.goto('/login');
  await page.getByLabel('Email').fill(owner(5).email);
  await page.getByLabel('Password').fill('not the password');
  await page.getByRole('button', { name: 'Log in' }).click();
  await expect(page.getByRole('alert')).toHaveText('Email or password is not right. Please try again.');
  await expect(page.getByLabel('Email')).toHaveValue(owner(5).email);
  await expect(page.getByLabel('Password')).toHaveValue('');
});

test('a running job is seen and cancelled', async ({ page }) => {
  await logIn(page);
  const release = await lockTable(owner(5).database, 'wp_posts');
  await section(page, 'Make a backup').getByRole('link', { name: CHOICE.db }).click();
  await question(page, /^Back up/).getByRole('button', { name: 'Start the backup' }).click();
  const running = section(page, 'Backup of the database');
  await expect(running.getByRole('progressbar')).toBeVisible();
  await expect(section(page, 'Make a backup')).toContainText('A backup is running');
  await running.getByRole('link', { name: /^Cancel/ }).click();
  await question(page, 'Cancel the backup?').getByRole('button', { name: 'Cancel the backup' }).click();
  const failed = failure(page, 'The backup was cancelled');
  await expect(failed).toBeVisible();
  await release();
  await failed.getByRole('button', { name: 'Dismiss' }).click();
  await expect(failed).toBeHidden();
});

test('the details of a backup are there, and it is deleted', async ({ page }) => {
  await logIn(page);
  const before = await backups(page, 'Your backups').count();
  await backups(page, 'Your backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('main')).toContainText('Made by you');
  await page.getByRole('link', { name: 'Delete …' }).click();
  await question(page, 'Delete this backup?').getByRole('button', { name: 'Delete for good' }).click();
  await expect(backups(page, 'Your backups')).toHaveCount(before - 1);
  await page.getByRole('button', { name: 'Log out' }).click();
  await expect(page).toHaveURL(/\/login/);
});
