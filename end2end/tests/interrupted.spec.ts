import { randomBytes } from 'node:crypto';
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  JOB,
  backups,
  expect,
  expectAllAccessible,
  failure,
  jobs,
  makeBackup,
  section,
  startRestore,
  test,
  told,
  untilDone,
} from '../dashboard';
import { turn, type Owner } from '../sandbox';

test.use({ customer: 6 });
test.describe.configure({ mode: 'serial' });

/** What visitors get. */
async function status(me: Owner): Promise<number> {
  return (await fetch(`${me.shop}/`, { redirect: 'follow' })).status;
}

const picture = (me: Owner): string => join(me.site, 'wp-content/in-the-backup.bin');

test('a backup to go back to', async ({ page, me }) => {
  writeFileSync(picture(me), randomBytes(2_000_000));
  await makeBackup(page, 'before the worker dies');
});

test('a restore whose worker dies before the exchange is undone, and the page says so', async ({ page, me }) => {
  rmSync(picture(me));
  await page.goto('/backups');
  await turn('line 100000');
  await startRestore(page, backups(page, 'Your backups').first(), /Files only/);
  const running = section(page, 'Restore of the files');
  await expect(running.getByRole('status')).toHaveText('Fetching the files', { timeout: JOB });
  await turn('kill worker');
  expect(await status(me)).toBe(503);
  await turn('line 0');
  await turn('start worker');

  const failed = failure(page, 'The restore was interrupted');
  await expect(failed).toBeVisible({ timeout: JOB });
  await expect(failed).toContainText('undone');
  await expect(failed).toContainText('Your shop is as it was before.');
  expect(await told(page, failed)).toMatchSnapshot('interrupted.aria.yml');
  expect(await status(me)).toBe(200);
  expect(existsSync(picture(me))).toBe(false);
  await failed.getByRole('button', { name: 'Dismiss' }).click();
  await expect(failed).toBeHidden();
});

test('a restore whose worker dies after the exchange is finished, and can be undone', async ({ page, me }) => {
  // Only what is in no backup yet has to go over the line when it is replaced.
  const newer = join(me.site, 'wp-content/newer.bin');
  writeFileSync(newer, randomBytes(4_000_000));
  await page.goto('/backups');
  await turn('line 300000');
  await startRestore(page, backups(page, 'Your backups').first(), /Files only/);
  const running = section(page, 'Restore of the files');
  await expect(running).toContainText('Your shop is back online. What was replaced is being saved, so that you can undo this.', {
    timeout: JOB,
  });
  await expect(running.getByRole('status')).toHaveText('Saving what was replaced');
  expect(await status(me)).toBe(200);
  await turn('kill worker');
  await turn('line 0');
  await turn('start worker');

  await untilDone(page, 'Restore of the files');
  const job = jobs(page).first();
  await expect(job).toContainText('It was interrupted and finished on its own.');
  await expect(job.getByRole('link', { name: 'Undo this restore …' })).toBeVisible();
  expect(await told(page, job)).toMatchSnapshot('recovered-job.aria.yml');
  expect(await status(me)).toBe(200);
  expect(existsSync(newer)).toBe(false);
  expect(existsSync(picture(me))).toBe(true);
});

test('while a restore is stuck the page says that help is on its way, and afterwards how it ended', async ({ page, me }) => {
  await page.goto('/backups');
  await turn('break customer-6');
  await startRestore(page, backups(page, 'Your backups').first(), /Database only/);
  const stuck = failure(page, 'The restore needs our help');
  await expect(stuck).toBeVisible({ timeout: JOB });
  await expect(stuck).toContainText('Our team has been told');
  await expect(stuck).toContainText('Your shop shows its maintenance page until then; please do not change anything');
  await expect(stuck.getByRole('button')).toHaveCount(0);
  await expect(jobs(page).first()).toContainText('Our team has been told');
  await expect(page.getByText('Our team is still looking after your last restore.')).toBeVisible();
  expect(await told(page, stuck)).toMatchSnapshot('stuck.aria.yml');
  await expectAllAccessible(page);
  expect(await status(me)).toBe(503);

  // Nobody has to load the page again to hear of the end.
  await turn('mend customer-6');
  await expect(stuck).toBeHidden({ timeout: 2 * JOB });
  await expect(failure(page, 'The restore was rolled back')).toContainText('Your shop is as it was before.');
  expect(await status(me)).toBe(200);
});
