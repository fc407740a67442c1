import AxeBuilder from '@axe-core/playwright';
import type { Page } from '@playwright/test';
import { backups, expect, failure, section, startBackup, test } from '../dashboard';
import { lockTable, owner } from '../sandbox';

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
  ['no-such-backup', (page) => page.goto(`/backups/${'0'.repeat(64)}`)],
  ['no-such-page', (page) => page.goto('/backups/and/nothing')],
];

async function openDetails(page: Page): Promise<void> {
  await page.goto('/backups');
  await backups(page, 'Your backups').first().getByRole('link', { name: /^Details/ }).click();
  await expect(page.getByRole('heading', { level: 1 })).toBeVisible();
}

async function expectAccessible(page: Page): Promise<void> {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const told = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).join(' | ')}`);
  expect(told).toEqual([]);
}

async function settle(page: Page, name: string): Promise<void> {
  await page.waitForLoadState('networkidle');
  if (['new-backup', 'restore', 'delete'].includes(name)) await expect(page.locator('dialog:modal')).toBeVisible();
}

/** What a screen reader is told, without what is another thing every day. */
async function told(page: Page): Promise<string> {
  const dialog = page.getByRole('dialog');
  const snapshot = await ((await dialog.count()) ? dialog : page.getByRole('main')).ariaSnapshot();
  const said = snapshot
    .replace(/[0-9a-f]{64}/g, 'ID')
    .replace(/\w{3} \d+ \w{3} \d{4}, \d\d:\d\d/g, 'TIME')
    .replace(/just now|\d+ (minute|hour|day)s? ago/g, 'AGE')
    .replace(/in the (\d+ )?(minute|hour|day)s? since/g, 'in the DURATION since')
    .replace(/less than a second|\d+ (minute|second|hour|day)s?|\d+ min( \d+ s)?/g, 'DURATION')
    .replace(/[\d.]+ [kM]B/g, 'SIZE')
    .replace(/(?<!level=)\d[\d\u202f]*/g, 'N');
  return `${said}\n`;
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

    test('a running job and the question whether to cancel it are accessible', async ({ page }) => {
      await page.goto('/backups');
      const release = await lockTable(owner(2).database, 'wp_posts');
      await startBackup(page, 'db');
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

test('everything can be done with the keyboard', async ({ page }) => {
  await page.goto('/backups?ask=backup&type=db');
  await expect(page.locator('dialog:modal')).toBeVisible();
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toBeHidden();
  const choice = section(page, 'Make a backup').getByRole('link', { name: /^Database only/ });
  await choice.focus();
  await page.keyboard.press('Enter');
  await expect(page.locator('dialog:modal')).toBeVisible();
  expect(await page.evaluate(() => document.activeElement?.closest('dialog') !== null)).toBe(true);
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toBeHidden();
  await expect(choice).toBeFocused();
  await page.goBack();
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
