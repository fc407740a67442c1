import type { Locator, Page } from '@playwright/test';
import {
  JOB,
  askForBackup,
  backups,
  expect,
  expectAccessible,
  failure,
  section,
  startBackup,
  test,
  told,
  untilDone,
} from '../dashboard';
import { lockTable, owner, sql } from '../sandbox';

test.use({ customer: 2 });

/** Every page and every question, by the way that leads there. */
const STATES: [name: string, open: (page: Page) => Promise<unknown>][] = [
  ['backups', (page) => page.goto('/backups')],
  ['new-backup', (page) => page.goto('/backups?ask=backup&type=both')],
  ['details', openDetails],
  ['restore', async (page) => {
    await openDetails(page);
    await page.getByRole('link', { name: /^Restore/ }).click();
  }],
  ['delete', async (page) => {
    await openDetails(page);
    await page.getByRole('link', { name: 'Delete …' }).click();
  }],
  ['gone', (page) => page.goto(`/backups?ask=restore&id=${'0'.repeat(64)}`)],
  ['no-such-backup', (page) => page.goto(`/backups/${'0'.repeat(64)}`)],
  ['no-such-page', (page) => page.goto('/backups/and/nothing')],
];

async function openDetails(page: Page): Promise<void> {
  await page.goto('/backups');
  await backups(page, 'Your backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible();
}

async function settle(page: Page, name: string): Promise<void> {
  await page.waitForLoadState('networkidle');
  if (['new-backup', 'restore', 'delete', 'gone'].includes(name)) await expect(page.locator('dialog:modal')).toBeVisible();
}

test('what a screen reader is told stays as it was agreed', async ({ page, complaints }) => {
  for (const [name, open] of STATES) {
    await open(page);
    await settle(page, name);
    expect(await told(page)).toMatchSnapshot(`${name}.aria.yml`);
  }
  // Chromium calls a page that is not there an error.
  complaints.splice(0);
});

test('what a screen reader is told of jobs stays as it was agreed', async ({ page }) => {
  const { database } = owner(2);
  await openDetails(page);
  const details = page.url();
  await page.goto('/backups');
  const release = await lockTable(database, 'wp_posts');
  await startBackup(page, 'db');
  const running = section(page, 'Backup of the database');
  await expect(running.locator('[aria-current=step]')).toHaveText('Saving the database');
  await expect(running).toContainText(/[kM]B/);
  expect(await told(page, running)).toMatchSnapshot('running.aria.yml');
  await page.goto(details);
  await expect(page.getByText('A backup is running.')).toBeVisible();
  expect(await told(page, page.getByRole('main').getByRole('region').last())).toMatchSnapshot('details-while-running.aria.yml');
  await release();
  await page.goto('/backups');
  await untilDone(page, 'Backup of the database');

  sql('CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone', database);
  await startBackup(page, 'db');
  const failed = failure(page, 'The backup failed');
  await expect(failed).toBeVisible({ timeout: JOB });
  sql('DROP VIEW broken', database);
  expect(await told(page, failed)).toMatchSnapshot('failed.aria.yml');
  await failed.getByRole('button', { name: 'Dismiss' }).click();
  await expect(failed).toBeHidden();

  await page.goto('/backups');
  await backups(page, 'Daily backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('main')).toContainText('Daily backup');
  expect(await told(page)).toMatchSnapshot('details-daily.aria.yml');
});

test.describe('nobody', () => {
  test.use({ customer: 0 });

  test('what a screen reader is told of a refused login stays as it was agreed', async ({ page }) => {
    await page.goto('/login');
    await page.getByLabel('Email').fill(owner(2).email);
    await page.getByLabel('Password').fill('not the password');
    await page.getByRole('button', { name: 'Log in' }).click();
    await expect(page.getByRole('alert')).toBeVisible();
    expect(await told(page)).toMatchSnapshot('login-refused.aria.yml');
  });
});

for (const colorScheme of ['light', 'dark'] as const) {
  test.describe(colorScheme, () => {
    test.use({ colorScheme });

    for (const [name, open] of STATES) {
      test(`${name} is accessible`, async ({ page, complaints }) => {
        await open(page);
        await settle(page, name);
        await expectAccessible(page);
        if (name.startsWith('no-such')) expect(complaints.splice(0).join('\n')).toContain('404');
      });
    }

    test('a running job, what is refused meanwhile, and the question whether to cancel are accessible', async ({ page, request, complaints }) => {
      await page.goto('/backups');
      const dialog = await askForBackup(page, 'db');
      const release = await lockTable(owner(2).database, 'wp_posts');
      const began = await request.post('/backups/create', { data: { backup_type: 'db' }, headers: { accept: 'application/json' } });
      expect(began.status()).toBe(200);
      await dialog.getByRole('button', { name: 'Start the backup' }).click();
      await expect(dialog.getByRole('alert')).toBeVisible();
      expect(complaints.splice(0).join('\n')).toContain('409');
      await expectAccessible(page);

      await page.goto('/backups?ask=backup&type=db');
      await expect(page.locator('dialog:modal')).toContainText('Not right now');
      await expectAccessible(page);

      await page.goto('/backups');
      await page.waitForLoadState('networkidle');
      await expect(section(page, 'Backup of the database').getByRole('progressbar')).toBeVisible();
      await expectAccessible(page);
      await section(page, 'Backup of the database').getByRole('link', { name: /^Cancel/ }).click();
      await expect(page.locator('dialog:modal')).toBeVisible();
      await expectAccessible(page);
      await page.getByRole('button', { name: 'Cancel the backup' }).click();
      const failed = failure(page, 'The backup was cancelled');
      await expect(failed).toBeVisible();
      await expectAccessible(page);
      await release();
      await failed.getByRole('button', { name: 'Dismiss' }).click();
      await expect(failed).toBeHidden();
    });
  });

  test.describe(`${colorScheme}, nobody`, () => {
    test.use({ colorScheme, customer: 0 });

    test('the login is accessible', async ({ page }) => {
      for (const problem of ['', '?problem=wrong']) {
        await page.goto(`/login${problem}`);
        await page.waitForLoadState('networkidle');
        await expectAccessible(page);
      }
    });
  });
}

/** Press Tab until this has the focus, as somebody does who has no mouse. */
async function tabTo(page: Page, target: Locator): Promise<void> {
  const MOST = 100;
  await expect(target).toBeVisible();
  for (let presses = 0; presses < MOST; presses += 1) {
    if (await target.evaluate((element) => element === document.activeElement)) return;
    await page.keyboard.press('Tab');
  }
  await expect(target).toBeFocused();
}

test('a question is left with the keyboard, back to where it was asked', async ({ page }) => {
  await page.goto('/backups?ask=backup&type=db');
  await expect(page.locator('dialog:modal')).toBeVisible();
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toBeHidden();
  const choice = section(page, 'Make a backup').getByRole('link', { name: /^Database only/ });
  await tabTo(page, choice);
  await page.keyboard.press('Enter');
  await expect(page.locator('dialog:modal')).toBeVisible();
  expect(await page.evaluate(() => document.activeElement?.closest('dialog') !== null)).toBe(true);
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toBeHidden();
  await expect(choice).toBeFocused();
  await page.goBack();
});

test('a backup is made, restored and deleted with the keyboard alone', async ({ page }) => {
  await page.goto('/backups');
  await page.waitForLoadState('networkidle');
  const before = await backups(page, 'Your backups').count();
  const { keyboard } = page;

  await tabTo(page, section(page, 'Make a backup').getByRole('link', { name: /^Database only/ }));
  await keyboard.press('Enter');
  await expect(page.locator('dialog:modal')).toBeVisible();
  await tabTo(page, page.getByLabel('Note'));
  await keyboard.type('typed');
  await tabTo(page, page.getByRole('button', { name: 'Start the backup' }));
  await keyboard.press('Enter');
  await untilDone(page, 'Backup of the database');
  const made = backups(page, 'Your backups').first();
  await expect(made).toContainText('typed');

  await tabTo(page, made.getByRole('link', { name: /^Restore/ }));
  await keyboard.press('Enter');
  await expect(page.locator('dialog:modal')).toBeVisible();
  await tabTo(page, page.getByLabel('to confirm'));
  await keyboard.type('RESTORE');
  await tabTo(page, page.getByRole('button', { name: 'Restore now' }));
  await keyboard.press('Space');
  await untilDone(page, 'Restore of the database');

  await tabTo(page, made.getByRole('link', { name: /^Details/ }));
  await keyboard.press('Enter');
  await tabTo(page, page.getByRole('link', { name: 'Delete …' }));
  await keyboard.press('Enter');
  await expect(page.locator('dialog:modal')).toBeVisible();
  // Enter alone would delete nothing.
  await expect(page.getByRole('link', { name: 'Keep it' })).toBeFocused();
  await tabTo(page, page.getByRole('button', { name: 'Delete for good' }));
  await keyboard.press('Enter');
  await expect(page).toHaveURL(/\/backups$/);
  await expect(backups(page, 'Your backups')).toHaveCount(before);
});

test('nothing is wider than a phone', async ({ page }) => {
  await page.setViewportSize({ width: 360, height: 740 });
  for (const [name, open] of STATES.filter(([name]) => !name.startsWith('no-such'))) {
    await open(page);
    await settle(page, name);
    const wide = await page.evaluate(() =>
      [...document.querySelectorAll('body *')]
        .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth + 1)
        .map((element) => element.outerHTML.slice(0, 120)),
    );
    expect(wide, name).toEqual([]);
    expect(await page.evaluate(() => document.documentElement.scrollWidth), name).toBeLessThanOrEqual(360);
  }
});

test('nothing comes from anywhere else, and no style or script is inline', async ({ page, baseURL }) => {
  const elsewhere: string[] = [];
  page.on('request', (request) => {
    if (!request.url().startsWith(`${baseURL}/`) && !request.url().startsWith('data:')) elsewhere.push(request.url());
  });
  const answer = await page.goto('/backups');
  await page.waitForLoadState('networkidle');
  expect(elsewhere).toEqual([]);
  const policy = answer?.headers()['content-security-policy'];
  expect(policy).toContain("default-src 'none'");
  expect(policy).not.toContain('unsafe-inline');
  expect(await page.locator('[style]').count()).toBe(0);
});
