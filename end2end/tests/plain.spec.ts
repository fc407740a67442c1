import { JOB, backups, expect, failure, jobs, question, section, test } from '../dashboard';
import { lockTable, owner, sql } from '../sandbox';
import type { Page } from '@playwright/test';

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

test('a wrong confirmation is refused in a sentence, the right one restores', async ({ page }) => {
  const me = owner(5);
  sql("UPDATE wp_options SET option_value = 'Hacked' WHERE option_name = 'blogname'", me.database);
  await logIn(page);
  for (const word of ['restore', 'RESTORE']) {
    await backups(page, 'Your backups').last().getByRole('link', { name: /^Restore/ }).click();
    const dialog = question(page, 'Restore this backup?');
    await dialog.getByRole('radio', { name: /Database only/ }).check();
    // The browser itself would ask for capital letters: this is one that does not.
    await dialog.getByLabel('to confirm').fill(word);
    if (word === 'restore') {
      const action = await dialog.locator('form').getAttribute('action');
      const answer = await page.request.post(action ?? '', {
        form: { confirmation: word, restore_type: 'db' },
        headers: { accept: 'text/html' },
      });
      expect(await answer.text()).toContain('please type RESTORE in capital letters');
      await page.goto('/backups');
    } else {
      await dialog.getByRole('button', { name: 'Restore now' }).click();
    }
  }
  await untilDone(page, 'Restore of the database');
  expect(await (await fetch(`${me.shop}/`)).text()).toContain('<title>Shop 5');
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
