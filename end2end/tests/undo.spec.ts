import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  JOB,
  askForRestore,
  backups,
  expect,
  expectAllAccessible,
  failure,
  jobs,
  makeBackup,
  question,
  section,
  startBackup,
  startRestore,
  test,
  told,
  undo,
  untilDone,
} from '../dashboard';
import { sql, turn, type Owner } from '../sandbox';

test.use({ customer: 6 });
test.describe.configure({ mode: 'serial' });

const REPLACED = 'Made before a restore';
const UNDO = 'Undo this restore …';

function placeOrder(me: Owner, token: string): void {
  sql(`INSERT INTO shop_orders (placed, total, token) VALUES (NOW(), 5, '${token}')`, me.database);
}

function hasOrder(me: Owner, token: string): boolean {
  return sql(`SELECT COUNT(*) FROM shop_orders WHERE token = '${token}'`, me.database) === '1\n';
}

test('a backup to go back to', async ({ page }) => {
  await page.goto('/backups');
  await expect(section(page, REPLACED)).toHaveCount(0);
  await makeBackup(page, 'the start');
});

test('undoing a restore brings back the order and the file of just before it', async ({ page, me }) => {
  const picture = join(me.site, 'wp-content/just-before.jpg');
  await page.goto('/backups');
  const dialog = await askForRestore(page, backups(page, 'Your backups').first());
  await expect(dialog).toContainText('You can undo it: what is replaced becomes a backup. The newest 3 of those are kept.');
  await page.keyboard.press('Escape');
  await expect(dialog).toBeHidden();

  writeFileSync(picture, 'uploaded just before');
  placeOrder(me, 'just before');
  await startRestore(page, backups(page, 'Your backups').first(), /The whole shop/);
  await untilDone(page, 'Restore of database & files');
  expect(hasOrder(me, 'just before')).toBe(false);
  expect(existsSync(picture)).toBe(false);
  await expect(backups(page, REPLACED)).toHaveCount(1);
  await expect(jobs(page).first().getByRole('link', { name: UNDO })).toBeVisible();
  expect(await told(page, section(page, REPLACED))).toMatchSnapshot('replaced.aria.yml');
  expect(await told(page, jobs(page).first())).toMatchSnapshot('restored-job.aria.yml');
  await expectAllAccessible(page);

  // It is said that it is done, and how it is undone.
  const done = page.getByRole('status').filter({ hasText: 'Your shop is restored and open again.' });
  await done.getByRole('link', { name: UNDO }).click();
  await expect(page.locator('dialog:modal')).toContainText('What you choose goes back to how it was then, the moment before that restore.');
  expect(await told(page)).toMatchSnapshot('undo.aria.yml');
  await expectAllAccessible(page);
  await undo(page);
  await expect(backups(page, REPLACED)).toHaveCount(2, { timeout: JOB });
  await untilDone(page, 'Restore of database & files');
  expect(hasOrder(me, 'just before')).toBe(true);
  expect(readFileSync(picture, 'utf8')).toBe('uploaded just before');
  // What undid it can be undone: the newest alone, or two would be undone at once.
  await expect(jobs(page).getByRole('link', { name: UNDO })).toHaveCount(1);
  await expect(jobs(page).first().getByRole('link', { name: UNDO })).toBeVisible();
});

test('what a restore replaced has a page of its own, that says what it is', async ({ page }) => {
  await page.goto('/backups');
  await backups(page, REPLACED).last().getByRole('link', { name: /^Details/ }).click();
  const main = page.getByRole('main');
  await expect(main).toContainText(REPLACED);
  await expect(main).toContainText('Until newer ones of its kind take its place.');
  await page.waitForLoadState('networkidle');
  expect(await told(page)).toMatchSnapshot('details-replaced.aria.yml');
  await expectAllAccessible(page);
  await expect(page.getByRole('link', { name: /^Delete/ })).toHaveCount(0);
  await main.getByRole('link', { name: /^Restore/ }).click();
  await expect(question(page, 'Undo the restore?')).toBeVisible();
});

/** Look at a shop as often as it answers, until told to stop. */
async function watch(me: Owner, ending: AbortSignal): Promise<{ at: number; status: number; retryAfter: string | null }[]> {
  const seen = [];
  while (!ending.aborted) {
    const at = Date.now();
    const answer = await fetch(`${me.shop}/`, { redirect: 'follow' });
    await answer.arrayBuffer();
    seen.push({ at, status: answer.status, retryAfter: answer.headers.get('retry-after') });
  }
  return seen;
}

test('a shop that is kept online is closed for the moment of the exchange alone', async ({ page, me }) => {
  const SHORT = 20_000;
  const picture = join(me.site, 'wp-content/large.bin');
  writeFileSync(picture, randomBytes(3_000_000));
  await page.goto('/backups');
  await startBackup(page, 'files', 'with a large picture');
  await untilDone(page, 'Backup of the files');
  rmSync(picture);

  const ending = new AbortController();
  const watching = watch(me, ending.signal);
  const dialog = await askForRestore(page, backups(page, 'Your backups').first());
  const closed = dialog.getByText('Visitors see a maintenance page from the start');
  await expect(closed).toBeVisible();
  await dialog.getByLabel('Keep my shop online').check();
  await expect(closed).toBeHidden();
  await expectAllAccessible(page);
  await page.keyboard.press('Escape');
  await turn('line 300000');
  await startRestore(page, backups(page, 'Your backups').first(), undefined, true);
  const running = section(page, 'Restore of the files');
  await expect(running.getByRole('status')).toHaveText('Fetching the files', { timeout: JOB });
  await expect(running).toContainText('Your shop stays open until everything is ready.');
  const fetching = Date.now();
  await turn('line 1000000');
  await untilDone(page, 'Restore of the files');
  await turn('line 0');
  ending.abort();

  const seen = await watching;
  expect(existsSync(picture)).toBe(true);
  expect([...new Set(seen.map(({ status }) => status))].sort()).toEqual([200, 503]);
  const shut = seen.filter(({ status }) => status === 503);
  const [first, last] = [shut[0].at, shut[shut.length - 1].at];
  expect(seen.filter(({ at, status }) => status === 200 && at > fetching && at < first).length).toBeGreaterThan(0);
  expect(seen.filter(({ at, status }) => status === 200 && at > first && at < last)).toEqual([]);
  expect(shut.every(({ retryAfter }) => retryAfter !== null)).toBe(true);
  expect(last - first).toBeLessThan(SHORT);
  expect(seen[seen.length - 1].status).toBe(200);
});

test('a shop that does not start with what was restored is put back, and the page says why', async ({ page, me }) => {
  const front = join(me.site, 'index.php');
  const good = readFileSync(front);
  writeFileSync(front, '<?php http_response_code(500);');
  await page.goto('/backups');
  await startBackup(page, 'files', 'broken');
  await untilDone(page, 'Backup of the files');
  writeFileSync(front, good);

  await startRestore(page, backups(page, 'Your backups').first());
  const failed = failure(page, 'The restore was rolled back');
  await expect(failed).toBeVisible({ timeout: JOB });
  await expect(failed).toContainText('Your shop did not start with what was restored, so everything was put back.');
  await expect(failed).toContainText('Your shop is as it was before.');
  await expect(jobs(page).first()).toContainText('Rolled back');
  expect(await told(page, failed)).toMatchSnapshot('rolled-back.aria.yml');
  await expectAllAccessible(page);
  expect((await fetch(`${me.shop}/`)).status).toBe(200);
  expect(readFileSync(front)).toEqual(good);
  await failed.getByRole('button', { name: 'Dismiss' }).click();
  await expect(failed).toBeHidden();
});
