import {
  JOB,
  askForBackup,
  backups,
  expect,
  failure,
  isMarked,
  jobs,
  mark,
  question,
  section,
  startBackup,
  test,
  untilDone,
} from '../dashboard';
import { lockTable, owner, sql, turn } from '../sandbox';

test.use({ customer: 3 });
// Each goes on from what the one before left.
test.describe.configure({ mode: 'serial' });

test('each type is made, watched to its end, and listed, without the page being loaded again', async ({ page }) => {
  await page.goto('/backups');
  await expect(section(page, 'Your backups')).toContainText('0 of 5 kept');
  for (const [part, title, note] of [
    ['both', 'Backup of database & files', 'Before the new theme'],
    ['db', 'Backup of the database', ''],
    ['files', 'Backup of the files', '<b>"& a note'],
  ] as const) {
    await turn('line 100000');
    const dialog = await askForBackup(page, part);
    await mark(page);
    await expect(dialog).toContainText('Your shop stays open');
    if (note) await dialog.getByLabel('Note').fill(note);
    await dialog.getByRole('button', { name: 'Start the backup' }).click();
    await expect(section(page, title).getByRole('progressbar')).toBeVisible();
    await expect(section(page, 'Make a backup').getByRole('button').first()).toBeDisabled();
    await turn('line 0');
    await untilDone(page, title);
    await expect(section(page, title)).toBeHidden();
    if (note) await expect(backups(page, 'Your backups').first()).toContainText(note);
    expect(await isMarked(page)).toBe(true);
  }
  await expect(section(page, 'Your backups')).toContainText('3 of 5 kept');
});

test('the details of a backup say everything that is known of it', async ({ page }) => {
  await page.goto('/backups');
  await backups(page, 'Your backups').last().getByRole('link', { name: /^Details/ }).click();
  const main = page.getByRole('main');
  await expect(main).toContainText('Before the new theme');
  await expect(main).toContainText('Made by you');
  for (const term of ['Holds', 'Size', 'Of that, the database', 'Files', 'Kept', 'Reference']) {
    await expect(main.getByRole('term').filter({ hasText: term }).first()).toBeVisible();
  }
});

test('a second job is refused, in another tab too, which learns of the first by itself', async ({ page, context, complaints }) => {
  await page.goto('/backups');
  const other = await context.newPage();
  await other.goto('/backups');
  const dialog = await askForBackup(other, 'db');
  const release = await lockTable(owner(3).database, 'wp_posts');
  await startBackup(page, 'db', 'the first');
  await expect(section(page, 'Backup of the database')).toBeVisible();

  await dialog.getByRole('button', { name: 'Start the backup' }).click();
  await expect(dialog.getByRole('alert')).toContainText(/running|not ended|already|active/i);
  expect(complaints.splice(0).join('\n')).toContain('409');
  await dialog.getByRole('link', { name: 'Cancel' }).click();
  await other.bringToFront();
  await expect(section(other, 'Backup of the database')).toBeVisible();

  await release();
  await page.bringToFront();
  await untilDone(page, 'Backup of the database');
  await other.bringToFront();
  await untilDone(other, 'Backup of the database');
  await expect(backups(other, 'Your backups').first()).toContainText('the first');
});

test('two clicks at the same moment make one job', async ({ page, request }) => {
  await page.goto('/backups');
  const release = await lockTable(owner(3).database, 'wp_posts');
  const create = () => request.post('/backups/create', { data: { backup_type: 'db' }, headers: { accept: 'application/json' } });
  const statuses = (await Promise.all([create(), create()])).map((answer) => answer.status());
  expect(statuses.sort()).toEqual([200, 409]);
  await release();
  await page.reload();
  await untilDone(page, 'Backup of the database');
});

test('a running backup is cancelled, and nothing is left of it', async ({ page }) => {
  await page.goto('/backups');
  const before = await backups(page, 'Your backups').count();
  const release = await lockTable(owner(3).database, 'wp_posts');
  await startBackup(page, 'db', 'never to be seen');
  await section(page, 'Backup of the database').getByRole('link', { name: /^Cancel/ }).click();
  await question(page, 'Cancel the backup?').getByRole('button', { name: 'Cancel the backup' }).click();
  const failed = failure(page, 'The backup was cancelled');
  await expect(failed).toBeVisible();
  await release();
  await expect(backups(page, 'Your backups')).toHaveCount(before);
  await failed.getByRole('button', { name: 'Dismiss' }).click();
  await expect(failed).toBeHidden();
  await page.reload();
  await expect(failed).toBeHidden();
  await expect(jobs(page).first()).toContainText('Cancelled');
});

test('a question whether to cancel goes with its job', async ({ page }) => {
  await page.goto('/backups');
  const release = await lockTable(owner(3).database, 'wp_posts');
  await startBackup(page, 'db', 'done before it was cancelled');
  await section(page, 'Backup of the database').getByRole('link', { name: /^Cancel/ }).click();
  const dialog = question(page, 'Cancel the backup?');
  await expect(dialog).toBeVisible();
  await release();
  await expect(dialog).toBeHidden({ timeout: JOB });
  await expect(page).toHaveURL(/\/backups$/);
  await expect(page.getByRole('status').filter({ hasText: 'Your backup is done.' })).toBeVisible();
  await expect(backups(page, 'Your backups').first()).toContainText('done before it was cancelled');
});

test('a dump that fails is told in plain words, and what was there is still there', async ({ page }) => {
  const { database } = owner(3);
  await page.goto('/backups');
  const before = await backups(page, 'Your backups').count();
  sql('CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone', database);
  await startBackup(page, 'db');
  const failed = failure(page, 'The backup failed');
  await expect(failed).toBeVisible();
  await expect(failed).not.toContainText(/mysqldump|mariadb|exit|SQL|customer_3|\/tmp/);
  await expect(backups(page, 'Your backups')).toHaveCount(before);
  sql('DROP VIEW broken', database);
  await startBackup(page, 'db', 'mended');
  await untilDone(page, 'Backup of the database');
  await expect(failed).toBeHidden();
});

test('five are kept, and the page says which one goes', async ({ page }) => {
  await page.goto('/backups');
  for (;;) {
    const kept = await backups(page, 'Your backups').count();
    if (kept === 5) break;
    await startBackup(page, 'db');
    await expect(backups(page, 'Your backups')).toHaveCount(kept + 1);
    await untilDone(page, 'Backup of the database');
  }
  await expect(backups(page, 'Your backups').last()).toContainText('goes next');
  const oldest = await backups(page, 'Your backups').last().getByRole('link', { name: /^Details/ }).getAttribute('href');
  const dialog = await askForBackup(page, 'db');
  await expect(dialog).toContainText('the oldest is deleted');
  await dialog.getByRole('button', { name: 'Start the backup' }).click();
  await untilDone(page, 'Backup of the database');
  await expect(page.locator(`a[href="${oldest}"]`)).toHaveCount(0);
  await expect(backups(page, 'Your backups')).toHaveCount(5);
});

test('one is deleted after a question, and does not come back', async ({ page }) => {
  await page.goto('/backups');
  const before = await backups(page, 'Your backups').count();
  await backups(page, 'Your backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page).toHaveURL(/\/backups\/[0-9a-f]{64}$/);
  const address = page.url();
  await page.getByRole('link', { name: 'Delete …' }).click();
  await question(page, 'Delete this backup?').getByRole('button', { name: 'Delete for good' }).click();
  await expect(page).toHaveURL(/\/backups$/);
  await expect(backups(page, 'Your backups')).toHaveCount(before - 1);
  const answer = await page.request.get(address);
  expect(answer.status()).toBe(404);
});
