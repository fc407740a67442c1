// The dashboard as a customer sees and hears it, and the test that everything is built on: logged in, with a clean console.

import AxeBuilder from '@axe-core/playwright';
import { test as base, expect, type Locator, type Page } from '@playwright/test';
import { owner, type Owner } from './sandbox';

interface Options {
  /** Who looks at the dashboard; 0: nobody. */
  customer: number;
}

interface Fixtures {
  me: Owner;
  /** What the browser complained about. A test that provokes something takes it out; the rest fails it. */
  complaints: string[];
}

export const test = base.extend<Options & Fixtures>({
  customer: [0, { option: true }],
  me: async ({ customer }, use) => use(owner(customer)),
  storageState: async ({ customer, playwright, baseURL }, use) => {
    if (customer === 0) return use({ cookies: [], origins: [] });
    const request = await playwright.request.newContext({ baseURL });
    const { email, password } = owner(customer);
    const answer = await request.post('/login', { data: { email, password }, headers: { accept: 'application/json' } });
    expect(answer.status(), await answer.text()).toBe(200);
    await use(await request.storageState());
    await request.dispose();
  },
  complaints: [
    async ({ context, javaScriptEnabled }, use) => {
      const complaints: string[] = [];
      // Without scripts all that it complains about is what was loaded for them in vain.
      if (!javaScriptEnabled) return use(complaints);
      context.on('console', (message) => {
        if (['error', 'warning'].includes(message.type())) complaints.push(`${message.text()} ${message.location().url}`);
      });
      context.on('weberror', (error) => complaints.push(String(error.error())));
      await use(complaints);
      expect(complaints, 'what the browser complained about').toEqual([]);
    },
    { auto: true },
  ],
});

export { expect };

export type Part = 'both' | 'db' | 'files';

const CHOICES: Record<Part, RegExp> = { both: /^Database & files/, db: /^Database only/, files: /^Files only/ };

/** The section of a page under a heading. */
export function section(page: Page, name: string): Locator {
  return page.getByRole('region', { name });
}

/** What is told of the newest job when it failed. */
export function failure(page: Page, title: string): Locator {
  return section(page, title).filter({ has: page.getByRole('alert').filter({ hasText: title }) });
}

/** The question on the screen. */
export function question(page: Page, title: string | RegExp): Locator {
  return page.getByRole('dialog', { name: title });
}

/** Open the question about a new backup. Modal: the page has come to life. */
export async function askForBackup(page: Page, part: Part): Promise<Locator> {
  await section(page, 'Make a backup').getByRole('link', { name: CHOICES[part] }).click();
  const dialog = question(page, /^Back up/);
  await expect(page.locator('dialog:modal')).toBeVisible();
  return dialog;
}

export async function startBackup(page: Page, part: Part, note = ''): Promise<void> {
  const dialog = await askForBackup(page, part);
  await dialog.getByLabel('Note').fill(note);
  await dialog.getByRole('button', { name: 'Start the backup' }).click();
  await expect(dialog).toBeHidden();
}

/** Open the question whether to restore a backup of a list. */
export async function askForRestore(page: Page, backup: Locator): Promise<Locator> {
  await backup.getByRole('link', { name: /^Restore/ }).click();
  await expect(page.locator('dialog:modal')).toBeVisible();
  return question(page, 'Restore this backup?');
}

export async function startRestore(page: Page, backup: Locator, choice?: RegExp, online = false): Promise<void> {
  const dialog = await askForRestore(page, backup);
  if (choice) await dialog.getByRole('radio', { name: choice }).check();
  await dialog.getByLabel('Keep my shop online').setChecked(online);
  await dialog.getByLabel('to confirm').fill('RESTORE');
  await dialog.getByRole('button', { name: 'Restore now' }).click();
  await expect(dialog).toBeHidden();
}

/** Answer the question whether to undo a restore. */
export async function undo(page: Page): Promise<void> {
  const dialog = question(page, 'Undo the restore?');
  await dialog.getByLabel('to confirm').fill('RESTORE');
  await dialog.getByRole('button', { name: 'Undo the restore' }).click();
  await expect(dialog).toBeHidden();
}

/** Backups of a section, newest first. */
export function backups(page: Page, name: string): Locator {
  return section(page, name).getByRole('listitem');
}

/** Recent jobs, newest first. */
export function jobs(page: Page): Locator {
  return section(page, 'Recent activity').getByRole('listitem');
}

/** However busy the machine is, no job of a sandbox's little shops takes longer. */
export const JOB = 120_000;

/** Wait for the end of the job that was just started, as the page tells it. */
export async function untilDone(page: Page, title: string): Promise<void> {
  await expect(jobs(page).first()).toContainText(title, { timeout: JOB });
  await expect(jobs(page).first()).toContainText('Done');
  await expect(section(page, 'Make a backup').getByRole('link')).toHaveCount(3);
}

/** The page of backups, with all that it loads. */
export async function open(page: Page): Promise<void> {
  await page.goto('/backups');
  await expect(page.getByRole('heading', { name: 'Backups of your shop' })).toBeAttached();
  await page.waitForLoadState('networkidle');
}

/** A backup of all that is there now, made and told. */
export async function makeBackup(page: Page, note: string): Promise<void> {
  await open(page);
  await startBackup(page, 'both', note);
  await untilDone(page, 'Backup of database & files');
}

export async function expectAccessible(page: Page): Promise<void> {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const told = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).join(' | ')}`);
  expect(told).toEqual([]);
}

/** In both themes. */
export async function expectAllAccessible(page: Page): Promise<void> {
  for (const colorScheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await expectAccessible(page);
  }
}

/** What a screen reader is told, without what is another thing every day. */
export async function told(page: Page, part?: Locator): Promise<string> {
  const dialog = page.getByRole('dialog');
  const snapshot = await (part ?? ((await dialog.count()) ? dialog : page.getByRole('main'))).ariaSnapshot();
  const said = snapshot
    .replace(/(?<=paragraph: )[\d.]+ (bytes|[kM]B)\b.*/g, 'FIGURES')
    .replace(/[0-9a-f]{64}/g, 'ID')
    .replace(/(?<=number: |code: )[0-9a-f-]{16,}/g, 'ID')
    .replace(/\w{3} \d+ \w{3} \d{4}, \d\d:\d\d/g, 'TIME')
    .replace(/just now|\d+ (minute|hour|day)s? ago/g, 'AGE')
    .replace(/in the (\d+ )?(minute|hour|day)s? since/g, 'in the DURATION since')
    .replace(/less than a second|\d+ (minute|second|hour|day)s?|\d+ min( \d+ s)?/g, 'DURATION')
    .replace(/[\d.]+ [kM]B/g, 'SIZE')
    .replace(/(?<!level=)\d[\d\u202f]*/g, 'N');
  return `${said}\n`;
}

/** Hold back what the page asks for at such an address, until it is let go. */
export async function hold(page: Page, address: string): Promise<() => void> {
  let letGo = () => {};
  const isLetGo = new Promise<void>((resolve) => (letGo = resolve));
  await page.route(address, async (route) => {
    await isLetGo;
    await route.continue();
  });
  return letGo;
}

/** A page that is not loaded again keeps this. */
export async function mark(page: Page): Promise<void> {
  await page.evaluate(() => Object.assign(window, { marked: true }));
}

export async function isMarked(page: Page): Promise<boolean> {
  return page.evaluate(() => 'marked' in window);
}
