import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  askForRestore,
  backups,
  expect,
  failure,
  jobs,
  makeBackup,
  section,
  startRestore,
  test,
  untilDone,
} from '../dashboard';
import { sql, turn, type Owner } from '../sandbox';

test.use({ customer: 4 });
test.describe.configure({ mode: 'serial' });

const NAME = 'Shop 4';

/** What visitors get. */
async function visit(me: Owner): Promise<{ status: number; text: string }> {
  const answer = await fetch(`${me.shop}/`, { redirect: 'follow' });
  return { status: answer.status, text: await answer.text() };
}

async function expectGoodShop(me: Owner): Promise<void> {
  const { status, text } = await visit(me);
  expect(status).toBe(200);
  expect(text).toContain(`<title>${NAME}`);
}

function breakFiles(me: Owner): void {
  writeFileSync(join(me.site, 'index.php'), '<?php echo "defaced";');
  writeFileSync(join(me.site, 'left-behind.php'), '<?php');
  rmSync(join(me.site, 'wp-includes'), { recursive: true });
}

function breakDatabase(me: Owner): void {
  sql("UPDATE wp_options SET option_value = 'Hacked' WHERE option_name = 'blogname'; DELETE FROM wp_posts; CREATE TABLE planted (id INT)", me.database);
}

async function expectBroken(me: Owner, words: RegExp): Promise<void> {
  expect((await visit(me)).text).toMatch(words);
}

async function expectGoodDatabase(me: Owner): Promise<void> {
  await expectGoodShop(me);
  expect(sql("SELECT COUNT(*) FROM wp_posts WHERE post_type = 'post'", me.database)).toBe('21\n');
  expect(sql("SHOW TABLES LIKE 'planted'", me.database)).toBe('');
}

function expectGoodFiles(me: Owner): void {
  expect(existsSync(join(me.site, 'left-behind.php'))).toBe(false);
  expect(readFileSync(join(me.site, 'index.php'), 'utf8')).toContain('wp-blog-header.php');
}

test('a backup of its own to start from', async ({ page, me }) => {
  await expectGoodShop(me);
  await makeBackup(page, 'the good state');
});

test('nothing happens without the word', async ({ page, me }) => {
  await page.goto('/backups');
  const dialog = await askForRestore(page, backups(page, 'Your backups').first());
  await expect(dialog).toContainText('will be lost');
  await expect(dialog).toContainText('maintenance page from the start');
  await dialog.getByLabel('to confirm').fill('restore');
  await dialog.getByRole('button', { name: 'Restore now' }).click();
  await expect(dialog).toBeVisible();
  expect(await dialog.getByLabel('to confirm').evaluate((field: HTMLInputElement) => field.validity.valid)).toBe(false);
  await page.keyboard.press('Escape');
  await expect(dialog).toBeHidden();
  await expect(page).toHaveURL(/\/backups$/);

  // The server looks, too.
  const id = sql(`SELECT snapshot_id FROM customer_backups WHERE customer_id = ${me.id} AND source = 'manual'`).trim();
  const answer = await page.request.post(`/backups/${id}/restore`, {
    data: { confirmation: 'restore', restore_type: 'both' },
    headers: { accept: 'application/json' },
  });
  expect(answer.status()).toBe(400);
  expect(await answer.json()).toMatchObject({ success: false });
  expect(sql(`SELECT COUNT(*) FROM customer_backup_jobs WHERE customer_id = ${me.id} AND job_type = 'restore'`)).toBe('0\n');
});

test('the whole shop comes back, and visitors see the maintenance page meanwhile', async ({ page, me }) => {
  breakDatabase(me);
  breakFiles(me);
  await expectBroken(me, /defaced/);
  await page.goto('/backups');
  await turn('line 400000');
  await startRestore(page, backups(page, 'Your backups').first(), /The whole shop/);
  await expect(section(page, 'Restore of database & files').getByRole('progressbar')).toBeVisible();
  await expect.poll(async () => (await visit(me)).status).toBe(503);
  expect((await visit(me)).text).toContain('back in a few minutes');
  await turn('line 0');
  await untilDone(page, 'Restore of database & files');
  await expectGoodDatabase(me);
  expectGoodFiles(me);
});

test('the database alone comes back, and files stay as they are', async ({ page, me }) => {
  breakDatabase(me);
  writeFileSync(join(me.site, 'newer.txt'), 'a newer file');
  await expectBroken(me, /Hacked/);
  await page.goto('/backups');
  await startRestore(page, backups(page, 'Your backups').first(), /Database only/);
  await untilDone(page, 'Restore of the database');
  await expectGoodDatabase(me);
  expect(readFileSync(join(me.site, 'newer.txt'), 'utf8')).toBe('a newer file');
});

test('the files alone come back, and orders stay', async ({ page, me }) => {
  sql("INSERT INTO shop_orders (placed, total, token) VALUES (NOW(), 5, 'new')", me.database);
  const orders = sql('SELECT COUNT(*) FROM shop_orders', me.database);
  breakFiles(me);
  await expectBroken(me, /defaced/);
  await page.goto('/backups');
  await startRestore(page, backups(page, 'Your backups').first(), /Files only/);
  await untilDone(page, 'Restore of the files');
  await expectGoodShop(me);
  expectGoodFiles(me);
  expect(existsSync(join(me.site, 'newer.txt'))).toBe(false);
  expect(sql('SELECT COUNT(*) FROM shop_orders', me.database)).toBe(orders);
});

test('a daily backup comes back whole, from its own page', async ({ page, me }) => {
  breakDatabase(me);
  breakFiles(me);
  await expectBroken(me, /defaced/);
  await page.goto('/backups');
  await backups(page, 'Daily backups').nth(2).getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('main')).toContainText('Daily backup');
  await startRestore(page, page.getByRole('main'), /The whole shop/);
  await page.goto('/backups');
  await untilDone(page, 'Restore of database & files');
  await expectGoodDatabase(me);
  expectGoodFiles(me);
});

test('of a daily backup the database alone comes back, and the files alone', async ({ page, me }) => {
  await page.goto('/backups');
  breakDatabase(me);
  await startRestore(page, backups(page, 'Daily backups').first(), /Database only/);
  await untilDone(page, 'Restore of the database');
  await expectGoodDatabase(me);

  breakFiles(me);
  await startRestore(page, backups(page, 'Daily backups').first(), /Files only/);
  await untilDone(page, 'Restore of the files');
  await expectGoodShop(me);
  expectGoodFiles(me);
});

test('a restore is cancelled before it is put in place, and the shop is as it was', async ({ page, me }) => {
  sql("UPDATE wp_options SET option_value = 'Today' WHERE option_name = 'blogname'", me.database);
  await page.goto('/backups');
  await turn('line 200000');
  await startRestore(page, backups(page, 'Your backups').first(), /The whole shop/);
  const running = section(page, 'Restore of database & files');
  await running.getByRole('link', { name: /^Cancel/ }).click();
  await page.getByRole('button', { name: 'Cancel the restore' }).click();
  await expect(failure(page, 'The restore was cancelled')).toBeVisible();
  await turn('line 0');
  await expect(jobs(page).first()).toContainText('Cancelled');
  const { status, text } = await visit(me);
  expect(status).toBe(200);
  expect(text).toContain('<title>Today');
});
